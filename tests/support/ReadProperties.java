import java.io.ByteArrayInputStream;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.Properties;
import java.util.Scanner;
import java.util.TreeMap;

/** Reads texts, one a line in Base64, and writes for each line what Properties.load() finds. */
class ReadProperties {
    public static void main(String[] arguments) {
        Scanner lines = new Scanner(System.in, StandardCharsets.US_ASCII);
        while (lines.hasNextLine()) {
            Properties found = new Properties();
            try {
                byte[] content = Base64.getDecoder().decode(lines.nextLine());
                found.load(new ByteArrayInputStream(content));
            } catch (Exception error) {
                System.out.println("error");
                continue;
            }
            StringBuilder line = new StringBuilder();
            for (Object entry : new TreeMap<Object, Object>(found).entrySet()) {
                var pair = (java.util.Map.Entry<?, ?>) entry;
                line.append(encoded(pair.getKey())).append('=').append(encoded(pair.getValue()));
                line.append(' ');
            }
            System.out.println(line.toString().trim());
        }
    }

    static String encoded(Object text) {
        StringBuilder digits = new StringBuilder();
        for (char unit : ((String) text).toCharArray()) {
            digits.append(String.format("%04x", (int) unit));
        }
        return digits.toString();
    }
}

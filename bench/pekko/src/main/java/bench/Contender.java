/*
 * Pekko Connectors Kafka's SendProducer as a contender of bench/compare.py, beside those of
 * bench/contender.py. It exists because SendProducer is what this package is modelled on, and who
 * comes from there asks what the way costs.
 *
 *     java -cp ... bench.Contender pekko WORKLOAD --bootstrap ADDRESS [--topic bench] ...
 *
 * It takes the arguments that contender.py takes, and prints the same JSON object.
 *
 * The workloads:
 *
 *   tasks-N  N records on their way at any time: each task sends its next one when the future of
 *            the one before has completed. No task has a thread; what follows a record runs on the
 *            actor system's dispatcher, which is where a user of Pekko has it run.
 *   many-N   N records sent at once, then all their futures awaited, and again.
 *   forget   all records sent, and all awaited at the end. SendProducer has no bound on the records
 *            on their way; as a user would do, a semaphore lets 10,000 of them through.
 *
 * Guarantees: acks=all and enable.idempotence=true, as this package has them by default; both are
 * the Kafka client's defaults too, and are said nonetheless. linger.ms is 0, and a batch holds
 * 256 KiB as with the other clients; all else is as it comes. One thing is not equal: SendProducer
 * hands over each record from a pool of sixteen threads, so records that are sent one after the
 * other without being awaited may swap places before the Kafka client has them.
 *
 * Warm-up: the JVM interprets code before it compiles it, and what runs for a second only would
 * mostly be interpreted. So the workload runs unmeasured before it is measured: 200,000 records, or
 * half as many as are measured where that is more, for ten seconds at most. (After 20,000 a record
 * still costs up to three times as much processor time as it does in the end.) The other contenders
 * send one record.
 *
 * Processor time is that of the whole process in the measured part, with the threads that compile
 * and those that collect garbage, in steps of 10 ms. Memory is the most that the process had from
 * its start, the warm-up with it; the JVM gives its heap as much as it likes, a quarter of the
 * machine's memory at most.
 */
package bench;

import com.sun.management.OperatingSystemMXBean;
import com.typesafe.config.Config;
import com.typesafe.config.ConfigFactory;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.StringJoiner;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.Executor;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.message.ApiMessageType;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.pekko.actor.ActorSystem;
import org.apache.pekko.kafka.ProducerSettings;
import org.apache.pekko.kafka.javadsl.SendProducer;

/** One workload, once. */
public final class Contender {
  private static final int LEAST_WARM_UP = 200_000;
  private static final long MOST_WARM_UP_NANOS = TimeUnit.SECONDS.toNanos(10);

  /** How many records may be on their way where none is awaited. */
  private static final int ON_THEIR_WAY = 10_000;

  private final SendProducer<byte[], byte[]> producer;
  private final Executor dispatcher;
  private final String topic;
  private final byte[] value;

  private Contender(
      SendProducer<byte[], byte[]> producer, Executor dispatcher, String topic, byte[] value) {
    this.producer = producer;
    this.dispatcher = dispatcher;
    this.topic = topic;
    this.value = value;
  }

  private CompletionStage<RecordMetadata> send() {
    return producer.send(new ProducerRecord<>(topic, value));
  }

  /** One of the tasks, which sends one record after the other. */
  private final class Task {
    private final CompletableFuture<Void> done = new CompletableFuture<>();
    private final long[] latencies;
    private final int records;
    private int acknowledged;
    private long start;

    /** Latencies are noted where there is an array for them. */
    Task(int records, long[] latencies) {
      this.records = records;
      this.latencies = latencies;
    }

    void next() {
      start = latencies == null ? 0 : System.nanoTime();
      // With its executor named, since what javadsl returns makes every plain method of a stage an
      // asynchronous one of the common pool, and on two processors that starts a thread each time.
      // It also keeps the stack flat: nothing is called from within another.
      send().whenCompleteAsync(this::answered, dispatcher);
    }

    private void answered(RecordMetadata metadata, Throwable error) {
      if (error != null) {
        done.completeExceptionally(error);
        return;
      }
      if (latencies != null) {
        latencies[acknowledged] = System.nanoTime() - start;
      }
      acknowledged++;
      if (acknowledged == records) {
        done.complete(null);
      } else {
        next();
      }
    }
  }

  /** So many tasks, each with its share of the records; returns how many were sent. */
  private int tasks(int tasks, int records, long[] latencies) {
    int each = Math.max(1, records / tasks);
    CompletableFuture<?>[] done = new CompletableFuture<?>[tasks];
    for (int number = 0; number < tasks; number++) {
      Task task = new Task(each, latencies);
      done[number] = task.done;
      task.next();
    }
    CompletableFuture.allOf(done).join();
    return each * tasks;
  }

  /** So many records at once, all of them awaited; returns how many were sent. */
  private int many(int atMost, int records) {
    int atOnce = Math.min(atMost, records);
    int rounds = records / atOnce;
    for (int round = 0; round < rounds; round++) {
      CompletableFuture<?>[] sent = new CompletableFuture<?>[atOnce];
      for (int number = 0; number < atOnce; number++) {
        sent[number] = send().toCompletableFuture();
      }
      CompletableFuture.allOf(sent).join();
    }
    return rounds * atOnce;
  }

  /** All records, awaited at the end; returns how many were sent. */
  private int forget(int records) throws InterruptedException {
    Semaphore room = new Semaphore(ON_THEIR_WAY);
    AtomicReference<Throwable> failure = new AtomicReference<>();
    for (int number = 0; number < records; number++) {
      room.acquire();
      send()
          .whenCompleteAsync(
              (metadata, error) -> {
                if (error != null) {
                  failure.set(error);
                }
                room.release();
              },
              dispatcher);
    }
    room.acquire(ON_THEIR_WAY);
    if (failure.get() != null) {
      throw new IllegalStateException("a record failed", failure.get());
    }
    return records;
  }

  private int run(String workload, int records, long[] latencies) throws InterruptedException {
    if (workload.equals("forget")) {
      return forget(records);
    }
    int many = manyOf(workload);
    return workload.startsWith("tasks-")
        ? tasks(many, records, latencies)
        : many(many, records);
  }

  /** The N of a workload's name. */
  private static int manyOf(String workload) {
    if (workload.equals("forget")) {
      return ON_THEIR_WAY;
    }
    if (!workload.matches("(tasks|many)-[1-9][0-9]*")) {
      throw new IllegalArgumentException("not a workload of this client: " + workload);
    }
    return Integer.parseInt(workload.substring(workload.indexOf('-') + 1));
  }

  /** In portions, so that it ends in time where each record takes long. */
  private void warmUp(String workload, int records) throws InterruptedException {
    int wanted = Math.max(LEAST_WARM_UP, records / 2);
    int portion = Math.min(wanted, Math.max(100, 10 * manyOf(workload)));
    long start = System.nanoTime();
    int sent = 0;
    while (sent < wanted && System.nanoTime() - start < MOST_WARM_UP_NANOS) {
      sent += run(workload, portion, null);
    }
    // The others begin with their garbage collected as well.
    System.gc();
  }

  private Map<String, Double> measured(String workload, int records)
      throws InterruptedException, IOException {
    OperatingSystemMXBean system =
        ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class);
    long[] latencies = workload.equals("tasks-1") ? new long[Math.max(1, records)] : null;
    warmUp(workload, records);
    long processor = system.getProcessCpuTime();
    long start = System.nanoTime();
    int sent = run(workload, records, latencies);
    long nanos = System.nanoTime() - start;
    processor = system.getProcessCpuTime() - processor;

    Map<String, Double> figures = new LinkedHashMap<>();
    figures.put("rate", sent / (nanos / 1e9));
    figures.put("cpu_us", processor / 1e3 / sent);
    figures.put("memory_mib", mostMemory());
    if (latencies != null) {
      Arrays.sort(latencies);
      int last = latencies.length - 1;
      figures.put("latency_median_ms", latencies[latencies.length / 2] / 1e6);
      figures.put("latency_p99_ms", latencies[Math.min(last, latencies.length * 99 / 100)] / 1e6);
      figures.put("latency_max_ms", latencies[last] / 1e6);
    }
    return figures;
  }

  /** The most memory that this process had, in MiB. */
  private static double mostMemory() throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith("VmHWM:")) {
        return Double.parseDouble(line.replaceAll("[^0-9]", "")) / 1024;
      }
    }
    throw new IOException("the system does not say how much memory this process had");
  }

  /** What each record holds, the same as in contender.py. */
  private static byte[] valueOf(int size) {
    byte[] value = new byte[size];
    for (int index = 0; index < size; index++) {
      value[index] = (byte) (32 + index % 95);
    }
    return value;
  }

  /** The options by their names; what is for other clients only has no use here. */
  private static Map<String, String> optionsOf(String[] arguments) {
    Map<String, String> options = new HashMap<>();
    for (int index = 2; index < arguments.length; index++) {
      if (!arguments[index].equals("--ticks")) {
        options.put(arguments[index], arguments[++index]);
      }
    }
    return options;
  }

  private static ProducerSettings<byte[], byte[]> settingsOf(
      ActorSystem system, Map<String, String> options) {
    return ProducerSettings.create(system, new ByteArraySerializer(), new ByteArraySerializer())
        .withBootstrapServers(options.get("--bootstrap"))
        .withProperty("acks", "all")
        .withProperty("enable.idempotence", "true")
        .withProperty("linger.ms", "0")
        .withProperty("batch.size", Integer.toString(256 * 1024))
        .withProperty("compression.type", options.getOrDefault("--compression", "none"));
  }

  /**
   * Has the Kafka client ask for API versions in a way that librdkafka's mock cluster understands.
   *
   * <p>The mock knows ApiVersions up to version 2. To what is newer it answers that it does not,
   * and gives the number of entries as it is where the protocol has it plus one. The client reads
   * none, and takes the entry (API 18, from version 0) for a throttle time of 18 * 65536 ms: it
   * would ask again, be understood, and then send nothing for twenty minutes. No property of the
   * client changes what it asks first, so this goes to where it knows of the versions. All else,
   * idempotence included, is negotiated as ever.
   */
  private static void askAsTheMockUnderstands() throws ReflectiveOperationException {
    Field newest = ApiMessageType.class.getDeclaredField("highestSupportedVersion");
    newest.setAccessible(true);
    newest.setShort(ApiMessageType.API_VERSIONS, (short) 2);
  }

  private static String json(Map<String, Double> figures) {
    StringJoiner json = new StringJoiner(", ", "{", "}");
    figures.forEach(
        (name, figure) -> json.add(String.format(Locale.ROOT, "\"%s\": %f", name, figure)));
    return json.toString();
  }

  /** Runs one workload, and prints what came of it. */
  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2 || !arguments[0].equals("pekko")) {
      throw new IllegalArgumentException("pekko WORKLOAD --bootstrap ADDRESS ...");
    }
    // Standard output is for the figures.
    System.getProperties().putIfAbsent("org.slf4j.simpleLogger.defaultLogLevel", "error");
    Config quiet = ConfigFactory.parseString("pekko { loglevel = OFF, stdout-loglevel = OFF }");
    Map<String, String> options = optionsOf(arguments);
    // Given where the sink is the mock cluster, for kafka-python too.
    if (!options.getOrDefault("--api-version", "").isEmpty()) {
      askAsTheMockUnderstands();
    }
    ActorSystem system = ActorSystem.create("bench", quiet.withFallback(ConfigFactory.load()));
    try {
      var producer = new SendProducer<>(settingsOf(system, options), system);
      Contender contender =
          new Contender(
              producer,
              system.dispatcher(),
              options.getOrDefault("--topic", "bench"),
              valueOf(Integer.parseInt(options.getOrDefault("--size", "100"))));
      int records = Integer.parseInt(options.getOrDefault("--records", "50000"));
      Map<String, Double> figures = contender.measured(arguments[1], records);
      producer.close().toCompletableFuture().join();
      System.out.println(json(figures));
    } finally {
      system.terminate();
    }
  }
}

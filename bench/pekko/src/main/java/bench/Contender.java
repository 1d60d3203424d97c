/*
 * Pekko Connectors Kafka's SendProducer as a contender of bench/compare.py, like the contenders of
 * bench/contender.py. SendProducer is the model of this package, so its users can compare the two.
 *
 *     java -cp ... bench.Contender pekko WORKLOAD --bootstrap ADDRESS [--topic bench] ...
 *
 * The program takes the arguments of contender.py, and prints the same JSON object.
 *
 * The workloads:
 *
 *   tasks-N  N tasks, each with one record in flight: a task sends its next record when the future
 *            of the previous record has completed. A task has no thread. Its code runs on the actor
 *            system's dispatcher, as in a program of a Pekko user.
 *   many-N   N records are sent at once, then all their futures are awaited, and so on.
 *   forget   All records are sent, and awaited at the end. SendProducer does not limit the records
 *            in flight, so a semaphore limits them to 10,000, as in a program of a user.
 *
 * Guarantees: acks=all and enable.idempotence=true, the defaults of this package. They are also the
 * Kafka client's defaults, and are set explicitly. linger.ms is 0, and batches have 256 KiB, like
 * those of the other clients. All other settings have their defaults. One difference remains:
 * SendProducer passes each record to the Kafka client from a pool of sixteen threads. So records
 * that are sent without being awaited may change their order before the Kafka client has them.
 *
 * Warm-up: the JVM interprets code before it compiles it. In a workload of one second, most code
 * would be interpreted. So the workload first runs unmeasured, with 200,000 records or half of the
 * measured number, whichever is more, for ten seconds at most. (After 20,000 records, a record
 * still costs up to three times as much processor time as at the end.) The other contenders send
 * one record as their warm-up.
 *
 * Processor time covers all threads of the process in the measured part, including the threads of
 * the compiler and of the garbage collector, in steps of 10 ms. Memory is the peak of the process
 * since its start, including the warm-up. The JVM's heap can grow to a quarter of the machine's
 * memory.
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

/** Runs one workload once. */
public final class Contender {
  private static final int LEAST_WARM_UP = 200_000;
  private static final long MOST_WARM_UP_NANOS = TimeUnit.SECONDS.toNanos(10);

  /** The limit of records in flight if the workload awaits no record. */
  private static final int MOST_IN_FLIGHT = 10_000;

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

  /** A task that sends one record after the other. */
  private final class Task {
    private final CompletableFuture<Void> done = new CompletableFuture<>();
    private final long[] latencies;
    private final int records;
    private int acknowledged;
    private long start;

    /** With an array of latencies, the task notes the latency of each record. */
    Task(int records, long[] latencies) {
      this.records = records;
      this.latencies = latencies;
    }

    void next() {
      start = latencies == null ? 0 : System.nanoTime();
      // Name the executor: the stages of javadsl run even their plain methods asynchronously on the
      // common pool, which starts a thread each time on two processors. An asynchronous call also
      // keeps the stack flat.
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

  /** Runs the tasks, each with its share of the records, and returns the number of sent records. */
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

  /** Sends the records in lists, awaits each list, and returns the number of sent records. */
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

  /** Sends all records, awaits them at the end, and returns the number of sent records. */
  private int forget(int records) throws InterruptedException {
    Semaphore room = new Semaphore(MOST_IN_FLIGHT);
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
    room.acquire(MOST_IN_FLIGHT);
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
      return MOST_IN_FLIGHT;
    }
    if (!workload.matches("(tasks|many)-[1-9][0-9]*")) {
      throw new IllegalArgumentException("not a workload of this client: " + workload);
    }
    return Integer.parseInt(workload.substring(workload.indexOf('-') + 1));
  }

  /** Runs the workload in portions, so that the warm-up ends in time even if records are slow. */
  private void warmUp(String workload, int records) throws InterruptedException {
    int wanted = Math.max(LEAST_WARM_UP, records / 2);
    int portion = Math.min(wanted, Math.max(100, 10 * manyOf(workload)));
    long start = System.nanoTime();
    int sent = 0;
    while (sent < wanted && System.nanoTime() - start < MOST_WARM_UP_NANOS) {
      sent += run(workload, portion, null);
    }
    // The other contenders also collect their garbage before the measurement.
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

  /** Returns the peak memory of this process, in MiB. */
  private static double mostMemory() throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith("VmHWM:")) {
        return Double.parseDouble(line.replaceAll("[^0-9]", "")) / 1024;
      }
    }
    throw new IOException("/proc/self/status has no VmHWM, the peak memory of this process");
  }

  /** Returns the value of each record, the same as in contender.py. */
  private static byte[] valueOf(int size) {
    byte[] value = new byte[size];
    for (int index = 0; index < size; index++) {
      value[index] = (byte) (32 + index % 95);
    }
    return value;
  }

  /** Returns the options by their names. Options for other clients are not used. */
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
   * Makes the Kafka client send a version of ApiVersions that librdkafka's mock cluster supports.
   *
   * <p>The mock cluster supports ApiVersions up to version 2. It answers a newer request with an
   * error, and encodes the number of entries without the protocol's offset of one. So the client
   * reads no entry, and reads the bytes of the entry (API 18, from version 0) as a throttle time of
   * 18 * 65536 ms. It would then repeat the request with success, and send nothing for twenty
   * minutes. No property of the client sets the version of its first request, so this method
   * changes the client's own table of versions. All other versions are negotiated as usual.
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

  /** Runs one workload, and prints its figures. */
  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2 || !arguments[0].equals("pekko")) {
      throw new IllegalArgumentException("pekko WORKLOAD --bootstrap ADDRESS ...");
    }
    // Standard output is for the figures.
    System.getProperties().putIfAbsent("org.slf4j.simpleLogger.defaultLogLevel", "error");
    Config quiet = ConfigFactory.parseString("pekko { loglevel = OFF, stdout-loglevel = OFF }");
    Map<String, String> options = optionsOf(arguments);
    // If the sink is the mock cluster, contenders get this option.
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

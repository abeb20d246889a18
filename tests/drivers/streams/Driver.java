import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams, exactly once: copies records and numbers those of each partition from its store. Where nothing is lost
 * and nothing twice, neither in the topics nor in the store, the numbers are those that the records had.
 */
public final class Driver {
    private static final String STORE = "numbers";

    public static void main(String[] argv) throws Exception {
        Map<String, String> args = new HashMap<>();
        for (int i = 1; i + 1 < argv.length; i += 2) {
            args.put(argv[i].substring(2), argv[i + 1]);
        }
        History history = new History(Path.of(args.get("out")));
        history.line("E.start", "role=streams");
        KafkaStreams streams = new KafkaStreams(topology(args.get("topic"), args.get("to")), config(args));
        streams.setUncaughtExceptionHandler(error -> {
            history.line("E.error", String.valueOf(error).replaceAll("\\s+", " "));
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.setStateListener((now, before) -> history.line("S.state", now.name()));
        CountDownLatch stop = new CountDownLatch(1);
        sun.misc.Signal.handle(new sun.misc.Signal("TERM"), signal -> stop.countDown());
        if ("1".equals(System.getenv("CROSSOVER_WATCH_STDIN"))) {
            Thread watcher = new Thread(() -> watch(stop), "stdin");
            watcher.setDaemon(true);
            watcher.start();
        }
        streams.start();
        stop.await();
        streams.close(Duration.ofSeconds(30));
        history.line("E.end", "-");
        System.exit(0);
    }

    private static void watch(CountDownLatch stop) {
        try {
            while (System.in.read() >= 0) { }
        } catch (IOException closed) {
            // Same meaning as end of file.
        }
        stop.countDown();
    }

    private static Properties config(Map<String, String> args) throws IOException {
        Properties config = new Properties();
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args.get("bootstrap"));
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, args.get("group"));
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        config.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory(Path.of(args.get("out")).getParent(), "streams").toString());
        config.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        return config;
    }

    private static Topology topology(String from, String to) {
        Topology topology = new Topology();
        topology.addSource("read", Serdes.ByteArray().deserializer(), Serdes.ByteArray().deserializer(), from);
        topology.addProcessor("number", Numbering::new, "read");
        topology.addStateStore(Stores.keyValueStoreBuilder(
            Stores.inMemoryKeyValueStore(STORE), Serdes.Integer(), Serdes.Long()), "number");
        topology.addSink("write", to, Serdes.ByteArray().serializer(), Serdes.ByteArray().serializer(),
            new SamePartition(), "number");
        return topology;
    }

    /** Kafka 3 asks the one method, Kafka 4 the other. */
    private static final class SamePartition implements StreamPartitioner<byte[], byte[]> {
        public Integer partition(String topic, byte[] key, byte[] value, int partitions) {
            return Driver.partition(value);
        }

        public Optional<Set<Integer>> partitions(String topic, byte[] key, byte[] value, int partitions) {
            return Optional.of(Set.of(Driver.partition(value)));
        }
    }

    /** Values are `run|writer|partition|number|time|filling`. */
    private static int partition(byte[] value) {
        return Integer.parseInt(new String(value, StandardCharsets.ISO_8859_1).split("\\|", 6)[2]);
    }

    private static final class Numbering implements Processor<byte[], byte[], byte[], byte[]> {
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<Integer, Long> numbers;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            numbers = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            String[] parts = new String(record.value(), StandardCharsets.ISO_8859_1).split("\\|", 6);
            int partition = Integer.parseInt(parts[2]);
            Long next = numbers.get(partition);
            // The first number a producer gives is taken over.
            long number = next == null ? Long.parseLong(parts[3]) : next;
            numbers.put(partition, number + 1);
            parts[3] = Long.toString(number);
            context.forward(record.withValue(String.join("|", parts).getBytes(StandardCharsets.ISO_8859_1)));
        }
    }

    private static final class History {
        private final Path path;

        History(Path path) throws IOException {
            this.path = path;
            Files.deleteIfExists(path);
        }

        synchronized void line(String event, String text) {
            String line = System.currentTimeMillis() * 1000 + "\t" + event + "\t" + text + "\n";
            try {
                Files.writeString(path, line, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
            } catch (IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }
    }
}

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams on one thread; the library does not tell which partitions a member has. A consumer is a topology without
 * state and commits each second. A transformer works exactly once: it copies records and numbers those of each partition from
 * a store. Where nothing is lost and nothing twice, neither in the topics nor in the store, the numbers are those that the
 * records had. Command line and history format: loadtest/README.md.
 */
public final class Streams {
    public static void main(String[] argv) throws Exception {
        Driver.Args args = new Driver.Args(argv);
        Driver.stopOnSignalOrStdin();
        try (Driver.History history = new Driver.History(args.need("out"), args.topics())) {
            Driver.watchClientLog(history);
            boolean transforms = argv[0].equals("transformer");
            history.start(argv[0], "group=" + args.need("group") + "\tmember=" + args.get("member", "m")
                + "\treset=" + args.get("reset", "earliest") + "\tcommit=" + args.get("commit", "sync-each-second"));
            Topology topology = transforms ? Numbering.topology(args) : topology(args, history).build();
            Properties config = config(args);
            if (transforms) {
                config.put("processing.guarantee", "exactly_once_v2");
                config.put("replication.factor", "1");
                // What it commits by default: ten times a second.
                config.remove("commit.interval.ms");
            }
            try (KafkaStreams streams = new KafkaStreams(topology, config)) {
                streams.setStateListener((now, before) -> history.line("E.note", "state", now.name()));
                streams.setUncaughtExceptionHandler(error -> {
                    history.error("E.error", error);
                    return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
                });
                streams.start();
                while (!Driver.stopping && streams.state() != KafkaStreams.State.ERROR) {
                    Thread.sleep(50);
                }
                streams.close(Duration.ofSeconds(30));
            }
            history.line("E.end", "polled=" + polled);
        }
        System.exit(0);
    }

    /** By the only thread. */
    private static volatile long polled;

    private static StreamsBuilder topology(Driver.Args args, Driver.History history) {
        StreamsBuilder builder = new StreamsBuilder();
        builder.<byte[], byte[]>stream(args.topics()).process(() -> new ContextualProcessor<byte[], byte[], Void, Void>() {
            @Override
            public void process(Record<byte[], byte[]> record) {
                var at = context().recordMetadata().orElseThrow();
                polled++;
                history.polled(Driver.Clock.now(), at.topic(), at.partition(), at.offset(), record.value());
            }
        });
        return builder;
    }

    private static Properties config(Driver.Args args) {
        Properties config = Driver.common(args);
        config.put("application.id", args.need("group"));
        config.put("commit.interval.ms", "1000");
        config.put("num.stream.threads", "1");
        config.put("state.dir", args.need("out") + ".state");
        config.put("default.key.serde", Serdes.ByteArraySerde.class);
        config.put("default.value.serde", Serdes.ByteArraySerde.class);
        args.copy("reset", config, "auto.offset.reset");
        args.copy("static-id", config, "group.instance.id");
        args.copy("member", config, "client.id");
        return config;
    }

    private static final class Numbering implements Processor<byte[], byte[], byte[], byte[]> {
        private static final String STORE = "numbers";
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<Integer, Long> numbers;

        static Topology topology(Driver.Args args) {
            Topology topology = new Topology();
            topology.addSource("read", args.topics().toArray(new String[0]));
            topology.addProcessor("number", Numbering::new, "read");
            topology.addStateStore(Stores.keyValueStoreBuilder(
                Stores.inMemoryKeyValueStore(STORE), Serdes.Integer(), Serdes.Long()), "number");
            topology.addSink("write", args.need("to"), new SamePartition(), "number");
            return topology;
        }

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            numbers = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            String[] parts = parts(record.value());
            int partition = Integer.parseInt(parts[2]);
            Long next = numbers.get(partition);
            // The first number a producer gives is taken over.
            long number = next == null ? Long.parseLong(parts[3]) : next;
            numbers.put(partition, number + 1);
            parts[3] = Long.toString(number);
            context.forward(record.withValue(String.join("|", parts).getBytes(StandardCharsets.ISO_8859_1)));
        }

        /** Values are `run|writer|partition|number|time|filling`. */
        private static String[] parts(byte[] value) {
            return new String(value, StandardCharsets.ISO_8859_1).split("\\|", 6);
        }
    }

    /** Kafka 3 asks the one method, Kafka 4 the other. */
    private static final class SamePartition implements StreamPartitioner<byte[], byte[]> {
        public Integer partition(String topic, byte[] key, byte[] value, int partitions) {
            return Integer.valueOf(Numbering.parts(value)[2]);
        }

        public Optional<Set<Integer>> partitions(String topic, byte[] key, byte[] value, int partitions) {
            return Optional.of(Set.of(partition(topic, key, value, partitions)));
        }
    }
}

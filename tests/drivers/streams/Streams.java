import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.Record;

/**
 * A reader on Kafka Streams: one thread, a topology without state. Commits each second. The library does not tell which
 * partitions a member has. Command line and history format: loadtest/README.md.
 */
public final class Streams {
    public static void main(String[] argv) throws Exception {
        Driver.Args args = new Driver.Args(argv);
        Driver.stopOnSignalOrStdin();
        try (Driver.History history = new Driver.History(args.need("out"), args.topics())) {
            Driver.watchClientLog(history);
            history.start("consumer", "group=" + args.need("group") + "\tmember=" + args.get("member", "m")
                + "\treset=" + args.get("reset", "earliest") + "\tcommit=" + args.get("commit", "sync-each-second"));
            try (KafkaStreams streams = new KafkaStreams(topology(args, history).build(), config(args))) {
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
}

import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.StringJoiner;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.utils.AppInfoParser;

/** Load driver on kafka-clients; command line and history format: loadtest/README.md. */
public final class Driver {
    static volatile boolean stopping;

    public static void main(String[] argv) throws Exception {
        if (argv.length == 0 || !Arrays.asList("producer", "consumer", "transformer").contains(argv[0])) {
            refuse("usage: Driver producer|consumer|transformer --name value ...");
        }
        Args args = new Args(argv);
        stopOnSignalOrStdin();
        try (History history = new History(args.need("out"), args.topics())) {
            watchClientLog(history);
            Thread.setDefaultUncaughtExceptionHandler((thread, error) -> history.error("E.error", error));
            try {
                if (argv[0].equals("producer")) {
                    new Producer(args, history).run();
                } else if (argv[0].equals("transformer")) {
                    new Transformer(args, history).run();
                } else {
                    new Consumer(args, history).run();
                }
            } catch (Throwable error) {
                history.error("E.error", error);
                throw error;
            }
        }
        // Client threads that outlive a failed close must not keep the process.
        System.exit(0);
    }

    private static void refuse(String text) {
        System.err.println(text);
        System.exit(2);
    }

    /** SIGTERM must end with exit code 0, which a JVM shutdown hook cannot give. */
    static void stopOnSignalOrStdin() {
        sun.misc.Signal.handle(new sun.misc.Signal("TERM"), signal -> stopping = true);
        sun.misc.Signal.handle(new sun.misc.Signal("INT"), signal -> stopping = true);
        if ("1".equals(System.getenv("CROSSOVER_WATCH_STDIN"))) {
            Thread watcher = new Thread(() -> {
                try {
                    while (System.in.read() >= 0) { }
                } catch (IOException closed) {
                    // Same meaning as end of file.
                }
                stopping = true;
            }, "stdin");
            watcher.setDaemon(true);
            watcher.start();
        }
    }

    /** The consumer tells a silent position reset only by a log line, so the log is read. */
    static void watchClientLog(History history) {
        String internals = "org.slf4j.simpleLogger.log.org.apache.kafka.clients.consumer.internals.";
        System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "warn");
        for (String logger : new String[] {"Fetcher", "AbstractFetch", "FetchCollector"}) {
            System.setProperty(internals + logger, "info");
        }
        PrintStream original = System.err;
        System.setErr(new PrintStream(new OutputStream() {
            private final StringBuilder line = new StringBuilder();

            @Override
            public synchronized void write(int b) {
                original.write(b);
                if (b != '\n') {
                    line.append((char) b);
                    return;
                }
                if (line.indexOf("is out of range for partition") >= 0 || line.indexOf("Truncation detected") >= 0) {
                    history.line("C.reset", "-", line);
                }
                line.setLength(0);
            }
        }, true));
    }

    static Properties common(Args args) {
        Properties config = new Properties();
        config.put("bootstrap.servers", args.need("bootstrap"));
        if (args.has("metadata-max-age-ms")) {
            config.put("metadata.max.age.ms", args.need("metadata-max-age-ms"));
        }
        for (String pair : args.get("conf", "").split(",")) {
            if (pair.indexOf('=') > 0) {
                config.put(pair.substring(0, pair.indexOf('=')), pair.substring(pair.indexOf('=') + 1));
            }
        }
        return config;
    }

    private static final class Producer {
        private final Args args;
        private final History history;
        private final String topic;
        private final String writer;
        private final String run;
        private final int partitions;
        private final int size;
        private final AtomicLong acked = new AtomicLong();
        private final AtomicLong failed = new AtomicLong();
        /** Records per transaction; 0: all are one. */
        private final int perTransaction;
        /** What was sent in the open transaction, and how it is written down when that ends. */
        private final java.util.Queue<java.util.function.Consumer<String>> pending = new java.util.concurrent.ConcurrentLinkedQueue<>();
        private long transactions;
        private long sent;

        Producer(Args args, History history) {
            this.args = args;
            this.history = history;
            topic = args.need("topic");
            writer = args.need("writer");
            run = args.get("run", "r");
            partitions = Integer.parseInt(args.need("partitions"));
            size = Integer.parseInt(args.get("size", "100"));
            perTransaction = Integer.parseInt(args.get("transaction-records", "0"));
        }

        void run() {
            Properties config = common(args);
            args.copy("acks", config, "acks");
            args.copy("idempotent", config, "enable.idempotence");
            args.copy("linger-ms", config, "linger.ms");
            args.copy("compression", config, "compression.type");
            args.copy("transaction", config, "transactional.id");
            history.start("producer", "writer=" + writer + "\trun=" + run + "\tacks=" + effectiveAcks()
                + "\tidempotent=" + args.get("idempotent", "default"));
            ByteArraySerializer bytes = new ByteArraySerializer();
            KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config, bytes, bytes);
            if (args.has("transaction")) {
                producer.initTransactions();
                producer.beginTransaction();
            }
            sendAll(producer);
            producer.flush();
            if (args.has("transaction")) {
                endTransaction(producer);
            }
            producer.close();
            history.line("E.end", "sent=" + sent, "ok=" + acked.get(), "failed=" + failed.get());
        }

        /** Every fifth transaction is aborted. */
        private void nextTransaction(KafkaProducer<byte[], byte[]> producer) {
            boolean aborts = ++transactions % 5 == 0;
            producer.flush();
            if (aborts) {
                producer.abortTransaction();
            } else {
                producer.commitTransaction();
            }
            writeDown(aborts ? "P.aborted" : "P.ok");
            producer.beginTransaction();
        }

        private void writeDown(String event) {
            for (var line = pending.poll(); line != null; line = pending.poll()) {
                line.accept(event);
            }
        }

        private void endTransaction(KafkaProducer<byte[], byte[]> producer) {
            if (args.get("transaction-end", "commit").equals("abort")) {
                producer.abortTransaction();
            } else {
                producer.commitTransaction();
            }
            writeDown("P.ok");
        }

        /** The default became `all` with KIP-679 (3.0.0). */
        private String effectiveAcks() {
            String fallback = AppInfoParser.getVersion().startsWith("2.") ? "1" : "all";
            return args.get("acks", fallback);
        }

        private void sendAll(KafkaProducer<byte[], byte[]> producer) {
            Pace pace = new Pace(Double.parseDouble(args.need("rate")), Double.parseDouble(args.get("duration-s", "0")));
            long[] next = new long[partitions];
            while (pace.awaitNext()) {
                int partition = (int) (sent % partitions);
                send(producer, partition, next[partition]++);
                sent++;
                if (perTransaction > 0 && sent % perTransaction == 0) {
                    nextTransaction(producer);
                }
            }
        }

        private void send(KafkaProducer<byte[], byte[]> producer, int partition, long seq) {
            long sentUs = Clock.now();
            byte[] key = writer.getBytes(StandardCharsets.UTF_8);
            byte[] value = Value.encode(run, writer, partition, seq, sentUs, size);
            try {
                producer.send(new ProducerRecord<>(topic, partition, key, value), (metadata, error) ->
                    delivered(partition, seq, sentUs, metadata, error));
            } catch (RuntimeException error) {
                delivered(partition, seq, sentUs, null, error);
            }
        }

        private void delivered(int partition, long seq, long sentUs, RecordMetadata metadata, Exception error) {
            if (error == null) {
                acked.incrementAndGet();
                long offset = metadata.hasOffset() ? metadata.offset() : -1;
                if (perTransaction > 0) {
                    pending.add(event -> history.line(event, partition, seq, offset, sentUs));
                } else {
                    history.line("P.ok", partition, seq, offset, sentUs);
                }
            } else {
                failed.incrementAndGet();
                history.line("P.fail", partition, seq, error.getClass().getSimpleName(), error.getMessage());
            }
        }
    }

    private static final class Consumer implements ConsumerRebalanceListener {
        private final Args args;
        private final History history;
        private final boolean commitEachSecond;
        private final long stopAt;
        private final Map<TopicPartition, OffsetAndMetadata> delivered = new HashMap<>();
        private KafkaConsumer<byte[], byte[]> consumer;
        private long polled;
        private long lastCommitNs = System.nanoTime();

        Consumer(Args args, History history) {
            this.args = args;
            this.history = history;
            commitEachSecond = args.has("commit-at") || args.get("commit", "auto").equals("sync-each-second");
            stopAt = Long.parseLong(args.get("stop-at-end-count", "0"));
        }

        void run() {
            Properties config = common(args);
            config.put("group.id", args.need("group"));
            args.copy("reset", config, "auto.offset.reset");
            args.copy("static-id", config, "group.instance.id");
            args.copy("member", config, "client.id");
            if (args.get("protocol", "classic").equals("consumer")) {
                config.put("group.protocol", "consumer");
            } else if (args.has("strategy")) {
                boolean cooperative = args.need("strategy").equals("cooperative");
                config.put("partition.assignment.strategy", "org.apache.kafka.clients.consumer."
                    + (cooperative ? "CooperativeStickyAssignor" : "RangeAssignor"));
            }
            if (commitEachSecond) {
                config.put("enable.auto.commit", "false");
            }
            history.start("consumer", "group=" + args.need("group") + "\tmember=" + args.get("member", "m")
                + "\treset=" + args.get("reset", "latest") + "\tcommit=" + args.get("commit", "auto"));
            ByteArrayDeserializer bytes = new ByteArrayDeserializer();
            consumer = new KafkaConsumer<>(config, bytes, bytes);
            if (args.has("commit-at")) {
                commitAt();
            } else {
                read();
            }
            close();
            history.line("E.end", "polled=" + polled);
        }

        /** A group without members takes commits from anybody. */
        private void commitAt() {
            for (String pair : args.need("commit-at").split(",")) {
                String[] parts = pair.split("=");
                TopicPartition tp = new TopicPartition(args.topics().get(0), Integer.parseInt(parts[0]));
                delivered.put(tp, new OffsetAndMetadata(Long.parseLong(parts[1])));
            }
            commit();
        }

        private void read() {
            consumer.subscribe(args.topics(), this);
            Pace deadline = new Pace(0, Double.parseDouble(args.get("duration-s", "0")));
            while (!stopping && !deadline.over() && (stopAt == 0 || polled < stopAt)) {
                pollOnce();
            }
            commit();
        }

        private void pollOnce() {
            ConsumerRecords<byte[], byte[]> records;
            try {
                records = consumer.poll(Duration.ofMillis(100));
            } catch (RuntimeException error) {
                history.error("C.error", error);
                throw error;
            }
            long now = Clock.now();
            for (ConsumerRecord<byte[], byte[]> record : records) {
                deliver(now, record);
            }
            if (commitEachSecond && System.nanoTime() - lastCommitNs >= 1_000_000_000L) {
                commit();
            }
        }

        private void deliver(long now, ConsumerRecord<byte[], byte[]> record) {
            polled++;
            TopicPartition tp = new TopicPartition(record.topic(), record.partition());
            delivered.put(tp, new OffsetAndMetadata(record.offset() + 1));
            history.polled(now, record.topic(), record.partition(), record.offset(), record.value());
        }

        private void commit() {
            lastCommitNs = System.nanoTime();
            if (!commitEachSecond || delivered.isEmpty()) {
                return;
            }
            try {
                consumer.commitSync(delivered);
                StringJoiner text = new StringJoiner(",");
                delivered.forEach((tp, offset) -> text.add(history.name(tp.topic(), tp.partition()) + "=" + offset.offset()));
                history.line("C.commit", "ok", text);
                delivered.clear();
            } catch (RebalanceInProgressException retry) {
                // By its contract not an error of the application: poll, then commit again.
                history.line("E.note", retry);
            } catch (RuntimeException error) {
                history.line("C.commit", "fail", error);
            }
        }

        private void close() {
            try {
                consumer.close();
            } catch (RuntimeException error) {
                history.error("C.error", error);
            }
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> added) {
            history.line("C.assign", history.names(added));
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> removed) {
            // What was delivered must be committed before the next owner reads its start position.
            commit();
            delivered.keySet().removeAll(removed);
            history.line("C.revoke", history.names(removed));
        }

        @Override
        public void onPartitionsLost(Collection<TopicPartition> removed) {
            delivered.keySet().removeAll(removed);
            history.line("C.lost", history.names(removed));
        }
    }

    /** Copies records of one topic to another, partition by partition, with the offsets read in the same transaction. */
    private static final class Transformer implements ConsumerRebalanceListener {
        private final Args args;
        private final History history;
        private final String to;
        private KafkaConsumer<byte[], byte[]> consumer;
        private KafkaProducer<byte[], byte[]> producer;

        Transformer(Args args, History history) {
            this.args = args;
            this.history = history;
            to = args.need("to");
        }

        void run() {
            ByteArrayDeserializer bytes = new ByteArrayDeserializer();
            consumer = new KafkaConsumer<>(consumerConfig(), bytes, bytes);
            Properties config = common(args);
            config.put("transactional.id", args.need("transaction"));
            config.put("acks", "all");
            producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
            history.start("transformer", "group=" + args.need("group") + "\ttransaction=" + args.need("transaction"));
            producer.initTransactions();
            consumer.subscribe(args.topics(), this);
            while (!stopping) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(100));
                if (!records.isEmpty()) {
                    transform(records);
                }
            }
            producer.close();
            consumer.close();
            history.line("E.end", "-");
        }

        private Properties consumerConfig() {
            Properties config = common(args);
            config.put("group.id", args.need("group"));
            config.put("auto.offset.reset", "none".equals(args.get("reset", "earliest")) ? "none" : "earliest");
            config.put("isolation.level", "read_committed");
            config.put("enable.auto.commit", "false");
            config.put("max.poll.records", args.get("transaction-records", "20"));
            args.copy("static-id", config, "group.instance.id");
            if (args.get("protocol", "classic").equals("consumer")) {
                config.put("group.protocol", "consumer");
            } else {
                boolean cooperative = args.get("strategy", "range").equals("cooperative");
                config.put("partition.assignment.strategy", "org.apache.kafka.clients.consumer."
                    + (cooperative ? "CooperativeStickyAssignor" : "RangeAssignor"));
            }
            return config;
        }

        private void transform(ConsumerRecords<byte[], byte[]> records) {
            Map<TopicPartition, OffsetAndMetadata> read = new HashMap<>();
            try {
                producer.beginTransaction();
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    producer.send(new ProducerRecord<>(to, record.partition(), record.key(), record.value()));
                    TopicPartition tp = new TopicPartition(record.topic(), record.partition());
                    read.put(tp, new OffsetAndMetadata(record.offset() + 1));
                }
                producer.sendOffsetsToTransaction(read, consumer.groupMetadata());
                producer.commitTransaction();
                history.line("T.ok", records.count());
            } catch (org.apache.kafka.common.errors.ProducerFencedException fatal) {
                history.error("E.error", fatal);
                throw fatal;
            } catch (org.apache.kafka.common.KafkaException error) {
                // By the contract of transactions: abort, and read again what was not committed.
                history.line("T.abort", error.getClass().getSimpleName(), error.getMessage());
                producer.abortTransaction();
                rewind();
            }
        }

        private void rewind() {
            Map<TopicPartition, OffsetAndMetadata> committed = consumer.committed(consumer.assignment());
            for (TopicPartition tp : consumer.assignment()) {
                OffsetAndMetadata offset = committed.get(tp);
                if (offset == null) {
                    consumer.seekToBeginning(Arrays.asList(tp));
                } else {
                    consumer.seek(tp, offset.offset());
                }
            }
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> added) {
            history.line("C.assign", history.names(added));
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> removed) {
            history.line("C.revoke", history.names(removed));
        }

        @Override
        public void onPartitionsLost(Collection<TopicPartition> removed) {
            history.line("C.lost", history.names(removed));
        }
    }

    /** Sends due records one by one; a stall longer than a second is not caught up, so that it stays visible as a gap. */
    private static final class Pace {
        private final double rate;
        private final long endNs;
        private long baseNs = System.nanoTime();
        private long count;

        Pace(double rate, double seconds) {
            this.rate = rate;
            endNs = seconds > 0 ? baseNs + (long) (seconds * 1e9) : Long.MAX_VALUE;
        }

        boolean over() {
            return endNs != Long.MAX_VALUE && System.nanoTime() - endNs >= 0;
        }

        boolean awaitNext() {
            long dueNs = baseNs + (long) (count * 1e9 / rate);
            long lateNs = System.nanoTime() - dueNs;
            if (lateNs > 1_000_000_000L) {
                baseNs = System.nanoTime();
                count = 0;
            }
            while (lateNs < 0 && !stopping && !over()) {
                java.util.concurrent.locks.LockSupport.parkNanos(Math.min(-lateNs, 50_000_000L));
                lateNs = System.nanoTime() - dueNs;
            }
            count++;
            return !stopping && !over();
        }
    }

    /** Wall clock read once, then the monotonic clock: a clock step cannot reorder events. */
    static final class Clock {
        private static final long BASE_US;
        private static final long BASE_NS;

        // Both are read together: the first calls load classes, and a busy machine may pause us between two reads, which
        // would put this process tens of milliseconds behind the others. The closest pair of several is taken.
        static {
            long closest = Long.MAX_VALUE, baseUs = 0, baseNs = 0;
            for (int attempt = 0; attempt < 50; attempt++) {
                long before = System.nanoTime();
                long us = ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
                long took = System.nanoTime() - before;
                if (took < closest) {
                    closest = took;
                    baseUs = us;
                    baseNs = before + took / 2;
                }
            }
            BASE_US = baseUs;
            BASE_NS = baseNs;
        }

        static long now() {
            return BASE_US + (System.nanoTime() - BASE_NS) / 1000;
        }
    }

    private static final class Value {
        static byte[] encode(String run, String writer, int partition, long seq, long sentUs, int size) {
            String head = run + "|" + writer + "|" + partition + "|" + seq + "|" + sentUs + "|";
            byte[] bytes = head.getBytes(StandardCharsets.UTF_8);
            byte[] value = Arrays.copyOf(bytes, Math.max(size, bytes.length));
            Arrays.fill(value, bytes.length, value.length, (byte) 'x');
            return value;
        }
    }

    static final class History implements AutoCloseable {
        private final OutputStream out;
        private final List<String> topics;
        private final Thread flusher;
        private ByteBuffer pending = ByteBuffer.allocate(1 << 16);
        private boolean closed;

        History(String path, List<String> topics) throws IOException {
            out = Files.newOutputStream(Paths.get(path));
            this.topics = topics;
            flusher = new Thread(this::flushRegularly, "history");
            flusher.setDaemon(true);
            flusher.start();
        }

        void start(String role, String fields) {
            line("E.start", "role=" + role, "library=kafka-clients", "version=" + AppInfoParser.getVersion(),
                "topic=" + String.join(",", topics), new Raw(fields));
        }

        void line(String event, Object... fields) {
            line(Clock.now(), event, fields);
        }

        void error(String event, Throwable error) {
            line(event, error);
        }

        void polled(long now, String topic, int partition, long offset, byte[] value) {
            String[] parts = value == null ? new String[0]
                : new String(value, StandardCharsets.ISO_8859_1).split("\\|", 6);
            if (parts.length < 6) {
                line(now, "C.other", name(topic, partition), offset);
            } else if (!parts[2].equals(Integer.toString(partition))) {
                line(now, "C.misplaced", name(topic, partition), offset, parts[2]);
            } else {
                line(now, "C.poll", name(topic, partition), offset, parts[1], parts[3], parts[4]);
            }
        }

        String name(String topic, int partition) {
            return topic.equals(topics.get(0)) ? Integer.toString(partition) : topic + ":" + partition;
        }

        String names(Collection<TopicPartition> partitions) {
            StringJoiner joined = new StringJoiner(",");
            partitions.forEach(tp -> joined.add(name(tp.topic(), tp.partition())));
            return joined.toString();
        }

        private synchronized void line(long now, String event, Object... fields) {
            StringBuilder text = new StringBuilder(96).append(now).append('\t').append(event);
            for (Object field : fields) {
                text.append('\t').append(field instanceof Raw ? field.toString() : clean(field));
            }
            byte[] bytes = text.append('\n').toString().getBytes(StandardCharsets.UTF_8);
            if (pending.remaining() < bytes.length) {
                flush();
            }
            if (pending.capacity() < bytes.length) {
                pending = ByteBuffer.allocate(bytes.length);
            }
            pending.put(bytes);
        }

        private static String clean(Object field) {
            String text = String.valueOf(field);
            for (int i = 0; i < text.length(); i++) {
                if (text.charAt(i) < ' ') {
                    return text.replaceAll("[\\t\\r\\n]+", " ");
                }
            }
            return text;
        }

        private synchronized void flush() {
            try {
                out.write(pending.array(), 0, pending.position());
                pending.clear();
            } catch (IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }

        private synchronized void flushRegularly() {
            try {
                while (!closed) {
                    wait(50);
                    flush();
                }
            } catch (InterruptedException stop) {
                Thread.currentThread().interrupt();
            }
        }

        @Override
        public synchronized void close() throws IOException {
            flush();
            closed = true;
            notifyAll();
            out.close();
        }

        private record Raw(String text) {
            @Override
            public String toString() {
                return text;
            }
        }
    }

    static final class Args {
        private final Map<String, String> values = new HashMap<>();

        Args(String[] argv) {
            for (int i = 1; i + 1 < argv.length; i += 2) {
                if (!argv[i].startsWith("--")) {
                    refuse("expected --name value, got " + argv[i]);
                }
                values.put(argv[i].substring(2), argv[i + 1]);
            }
        }

        boolean has(String name) {
            return values.containsKey(name);
        }

        String get(String name, String fallback) {
            return values.getOrDefault(name, fallback);
        }

        String need(String name) {
            if (!has(name)) {
                refuse("missing --" + name);
            }
            return values.get(name);
        }

        List<String> topics() {
            return new ArrayList<>(Arrays.asList(need("topic").split(",")));
        }

        void copy(String name, Properties config, String key) {
            if (has(name)) {
                config.put(key, values.get(name));
            }
        }
    }
}

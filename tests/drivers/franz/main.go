// Load driver on franz-go; command line and history format: loadtest/README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func main() {
	role, a := parseArgs()
	h := openHistory(a, role, "franz-go", version())
	stop := stopChannel(a)
	if role == "producer" {
		produce(a, h, stop)
	} else {
		consume(a, h, stop)
	}
}

func version() string {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "github.com/twmb/franz-go" {
			return module.Version
		}
	}
	return "?"
}

func client(a args, h *history, options []kgo.Opt) *kgo.Client {
	if _, ok := a["metadata-max-age-ms"]; ok {
		age := time.Duration(a.int("metadata-max-age-ms", "0")) * time.Millisecond
		options = append(options, kgo.MetadataMaxAge(age), kgo.MetadataMinAge(min(age, time.Second)))
	}
	// What the library has to say goes to the driver's log, as with the other libraries.
	options = append(options, kgo.WithLogger(kgo.BasicLogger(os.Stderr, kgo.LogLevelInfo, nil)))
	cl, err := kgo.NewClient(options...)
	if err != nil {
		h.line("E.error", err)
		h.end()
		refuse(err.Error())
	}
	return cl
}

func producerOptions(a args) []kgo.Opt {
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(a.need("bootstrap"), ",")...),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		// The library's default is snappy where the broker has it; the log dump reads uncompressed batches.
		kgo.ProducerBatchCompression(codec(a.get("compression", "none"))),
	}
	if id, ok := a["transaction"]; ok {
		options = append(options, kgo.TransactionalID(id))
	}
	switch a.get("acks", "all") {
	case "1":
		options = append(options, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0":
		options = append(options, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		if a.get("idempotent", "true") == "false" {
			options = append(options, kgo.DisableIdempotentWrite())
		}
	}
	if _, ok := a["linger-ms"]; ok {
		options = append(options, kgo.ProducerLinger(time.Duration(a.int("linger-ms", "0"))*time.Millisecond))
	}
	return options
}

func codec(name string) kgo.CompressionCodec {
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	found, ok := codecs[name]
	if !ok {
		refuse("unknown --compression")
	}
	return found
}

func produce(a args, h *history, stop <-chan struct{}) {
	idempotent := a.get("acks", "all") == "all" && a.get("idempotent", "true") == "true"
	h.start(fmt.Sprintf("writer=%s\trun=%s\tacks=%s\tidempotent=%t", a.need("writer"), a.get("run", "r"), a.get("acks", "all"), idempotent))
	cl := client(a, h, producerOptions(a))
	topic, writer, run := a.need("topic"), a.need("writer"), a.get("run", "r")
	partitions, size := a.int("partitions", "1"), a.int("size", "100")
	next := make([]uint64, partitions)
	var sent, ok, failed atomic.Int64
	t := &transactions{cl: cl, h: h, size: int64(a.int("transaction-records", "0"))}
	t.begin()
	paced(a.float("rate", "1"), stop, func() {
		partition := int32(int(sent.Add(1)-1) % partitions)
		seq := next[partition]
		next[partition]++
		at := nowUs()
		record := &kgo.Record{Topic: topic, Partition: partition, Key: []byte(writer), Value: encode(run, writer, partition, seq, at, size)}
		cl.Produce(context.Background(), record, func(r *kgo.Record, err error) {
			if err != nil {
				failed.Add(1)
				h.line("P.fail", partition, seq, code(err), err)
				return
			}
			ok.Add(1)
			offset := r.Offset
			if a.get("acks", "all") == "0" {
				offset = -1
			}
			t.line(partition, seq, offset, at)
		})
		t.sent(sent.Load())
	})
	t.end()
	_ = cl.Flush(context.Background())
	cl.Close()
	h.end(fmt.Sprintf("sent=%d", sent.Load()), fmt.Sprintf("ok=%d", ok.Load()), fmt.Sprintf("failed=%d", failed.Load()))
}

// transactions of size records each, or none; every fifth one is aborted. What was sent is written down when it ends.
type transactions struct {
	cl      *kgo.Client
	h       *history
	size    int64
	ended   int
	mu      sync.Mutex
	pending [][]any
}

func (t *transactions) begin() {
	if t.size > 0 {
		t.must(t.cl.BeginTransaction())
	}
}

func (t *transactions) sent(count int64) {
	if t.size > 0 && count%t.size == 0 {
		t.end()
		t.begin()
	}
}

func (t *transactions) end() {
	if t.size == 0 {
		return
	}
	ctx := context.Background()
	t.must(t.cl.Flush(ctx))
	t.ended++
	event, how := "P.ok", kgo.TryCommit
	if t.ended%5 == 0 {
		event, how = "P.aborted", kgo.TryAbort
	}
	t.must(t.cl.EndTransaction(ctx, how))
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fields := range t.pending {
		t.h.line(event, fields...)
	}
	t.pending = nil
}

func (t *transactions) line(fields ...any) {
	if t.size == 0 {
		t.h.line("P.ok", fields...)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending = append(t.pending, fields)
}

func (t *transactions) must(err error) {
	if err != nil {
		t.h.line("E.error", code(err), err)
		panic(err)
	}
}

func code(err error) string {
	var kafka *kerr.Error
	if errors.As(err, &kafka) {
		return kafka.Message
	}
	return "client"
}

type reader struct {
	a         args
	h         *history
	cl        *kgo.Client
	sync      bool
	mu        sync.Mutex
	delivered map[string]map[int32]kgo.EpochOffset
}

func consume(a args, h *history, stop <-chan struct{}) {
	r := &reader{a: a, h: h, sync: a.get("commit", "auto") == "sync-each-second", delivered: map[string]map[int32]kgo.EpochOffset{}}
	reset := a.get("reset", "earliest")
	h.start(fmt.Sprintf("group=%s\tmember=%s\treset=%s\tcommit=%s", a.need("group"), a.get("member", "m"), reset, a.get("commit", "auto")))
	r.cl = client(a, h, r.options(reset))
	limit, polled, committed := a.int("stop-at-end-count", "0"), 0, time.Now()
	for running(stop) && (limit == 0 || polled < limit) {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		fetches := r.cl.PollFetches(ctx)
		cancel()
		polled += r.take(fetches)
		if r.sync && time.Since(committed) >= time.Second {
			r.commit(r.cl)
			committed = time.Now()
		}
		r.cl.AllowRebalance()
	}
	r.commit(r.cl)
	r.cl.CloseAllowingRebalance()
	h.end(fmt.Sprintf("polled=%d", polled))
}

func running(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return false
	default:
		return true
	}
}

func (r *reader) options(reset string) []kgo.Opt {
	a := r.a
	offsets := map[string]kgo.Offset{"earliest": kgo.NewOffset().AtStart(), "latest": kgo.NewOffset().AtEnd(), "none": kgo.NoResetOffset()}
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(a.need("bootstrap"), ",")...),
		kgo.ConsumerGroup(a.need("group")), kgo.ConsumeTopics(a.topics()...), kgo.BlockRebalanceOnPoll(),
		kgo.ConsumeResetOffset(offsets[reset]),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, p map[string][]int32) { r.h.line("C.assign", r.h.names(p)) }),
		kgo.OnPartitionsRevoked(r.revoked),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, p map[string][]int32) {
			// Also called with nothing, and when a member that never had partitions leaves.
			if len(p) > 0 {
				r.h.line("C.lost", r.h.names(p))
				r.forget(p)
			}
		}),
	}
	if a.get("protocol", "classic") == "consumer" {
		options = append(options, kgo.ServerSideBalancer())
	}
	switch a.get("strategy", "") {
	case "eager":
		options = append(options, kgo.Balancers(kgo.RangeBalancer()))
	case "cooperative":
		options = append(options, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	if id, ok := a["static-id"]; ok {
		options = append(options, kgo.InstanceID(id))
	}
	if id, ok := a["member"]; ok {
		options = append(options, kgo.ClientID(id))
	}
	if r.sync {
		return append(options, kgo.DisableAutoCommit())
	}
	return append(options, kgo.AutoCommitCallback(func(_ *kgo.Client, req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		r.committed(req, resp, err)
	}))
}

func (r *reader) take(fetches kgo.Fetches) int {
	at, count := nowUs(), 0
	fetches.EachError(func(topic string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		switch {
		case errors.Is(err, context.DeadlineExceeded):
		case errors.As(err, &loss), errors.Is(err, kerr.OffsetOutOfRange):
			r.h.line("C.reset", r.h.name(topic, partition), err)
		default:
			r.h.line("C.error", fmt.Sprintf("%s-%d %v", topic, partition, err))
		}
	})
	fetches.EachRecord(func(record *kgo.Record) {
		count++
		r.h.polled(at, record.Topic, record.Partition, record.Offset, record.Value)
		if r.delivered[record.Topic] == nil {
			r.delivered[record.Topic] = map[int32]kgo.EpochOffset{}
		}
		r.delivered[record.Topic][record.Partition] = kgo.EpochOffset{Epoch: record.LeaderEpoch, Offset: record.Offset + 1}
	})
	return count
}

func (r *reader) revoked(_ context.Context, cl *kgo.Client, partitions map[string][]int32) {
	if len(partitions) == 0 {
		return
	}
	r.commit(cl)
	r.h.line("C.revoke", r.h.names(partitions))
	r.forget(partitions)
}

func (r *reader) forget(partitions map[string][]int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for topic, numbers := range partitions {
		for _, number := range numbers {
			delete(r.delivered[topic], number)
		}
	}
}

func (r *reader) commit(cl *kgo.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pending := 0
	for _, offsets := range r.delivered {
		pending += len(offsets)
	}
	if !r.sync || pending == 0 {
		return
	}
	failed := true
	cl.CommitOffsetsSync(context.Background(), r.delivered, func(_ *kgo.Client, req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = !r.committed(req, resp, err)
	})
	if !failed {
		r.delivered = map[string]map[int32]kgo.EpochOffset{}
	}
}

// committed notes the answer to a commit; true if everything was accepted.
func (r *reader) committed(req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) bool {
	if err != nil {
		// A commit that a newer one replaces is no answer of the cluster.
		if !errors.Is(err, context.Canceled) {
			r.h.line("C.commit", "fail", err)
		}
		return false
	}
	refused := map[string]bool{}
	for _, topic := range resp.Topics {
		for _, partition := range topic.Partitions {
			if err := kerr.ErrorForCode(partition.ErrorCode); err != nil {
				refused[r.h.name(topic.Topic, partition.Partition)] = true
				r.h.line("C.commit", "fail", fmt.Sprintf("%s-%d %v", topic.Topic, partition.Partition, err))
			}
		}
	}
	var done []string
	for _, topic := range req.Topics {
		for _, partition := range topic.Partitions {
			if name := r.h.name(topic.Topic, partition.Partition); !refused[name] {
				done = append(done, fmt.Sprintf("%s=%d", name, partition.Offset))
			}
		}
	}
	if len(done) > 0 {
		r.h.line("C.commit", "ok", strings.Join(done, ","))
	}
	return len(refused) == 0
}

// Load driver on sarama; command line and history format: loadtest/README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
)

func main() {
	role, a := parseArgs()
	sarama.Logger = log.New(os.Stderr, "", log.LstdFlags)
	h := openHistory(a, role, "sarama", version())
	stop := stopChannel(a)
	run := consume
	if role == "producer" {
		run = produce
	}
	if err := run(a, h, stop); err != nil {
		h.line("E.error", err)
		h.mu.Lock()
		_ = h.out.Flush()
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func version() string {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "github.com/IBM/sarama" {
			return module.Version
		}
	}
	return "?"
}

func produce(a args, h *history, stop <-chan struct{}) error {
	config, err := producerConfig(a)
	if err != nil {
		return err
	}
	acks := strings.Replace(fmt.Sprint(int16(config.Producer.RequiredAcks)), "-1", "all", 1)
	h.start(fmt.Sprintf("writer=%s\trun=%s\tacks=%s\tidempotent=%t", a.need("writer"), a.get("run", "r"), acks, config.Producer.Idempotent))
	producer, err := sarama.NewAsyncProducer(strings.Split(a.need("bootstrap"), ","), config)
	if err != nil {
		return err
	}
	var ok, failed atomic.Int64
	var drained sync.WaitGroup
	t := &transactions{producer: producer, h: h, size: a.int("transaction-records", "0")}
	drained.Go(func() {
		for message := range producer.Successes() {
			ok.Add(1)
			tag := message.Metadata.(tag)
			offset := message.Offset
			if config.Producer.RequiredAcks == sarama.NoResponse {
				offset = -1
			}
			t.line(tag.partition, tag.seq, offset, tag.at)
		}
	})
	drained.Go(func() {
		for failure := range producer.Errors() {
			failed.Add(1)
			tag := failure.Msg.Metadata.(tag)
			h.line("P.fail", tag.partition, tag.seq, fmt.Sprintf("%T", failure.Err), failure.Err)
			t.told.Done()
		}
	})
	sent, err := sendAll(a, producer, t, stop)
	if err != nil {
		return err
	}
	producer.AsyncClose()
	drained.Wait()
	h.end(fmt.Sprintf("sent=%d", sent), fmt.Sprintf("ok=%d", ok.Load()), fmt.Sprintf("failed=%d", failed.Load()))
	return nil
}

// tag travels with a message to its answer.
type tag struct {
	partition int32
	seq       uint64
	at        int64
}

// transactions of size records each, or none; every fifth one is aborted. What was sent is written down when it ends.
type transactions struct {
	producer sarama.AsyncProducer
	h        *history
	size     int
	ended    int
	// Answers that have not been seen yet: the library is done with a message before its answer is read.
	told    sync.WaitGroup
	mu      sync.Mutex
	pending [][]any
}

func (t *transactions) begin() error {
	if t.size == 0 {
		return nil
	}
	return t.producer.BeginTxn()
}

func (t *transactions) end() error {
	if t.size == 0 {
		return nil
	}
	t.ended++
	event, end := "P.ok", t.producer.CommitTxn
	if t.ended%5 == 0 {
		event, end = "P.aborted", t.producer.AbortTxn
	}
	if err := end(); err != nil {
		return err
	}
	t.told.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fields := range t.pending {
		t.h.line(event, fields...)
	}
	t.pending = nil
	return nil
}

func (t *transactions) line(fields ...any) {
	defer t.told.Done()
	if t.size == 0 {
		t.h.line("P.ok", fields...)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending = append(t.pending, fields)
}

func sendAll(a args, producer sarama.AsyncProducer, t *transactions, stop <-chan struct{}) (int, error) {
	topic, writer, run := a.need("topic"), a.need("writer"), a.get("run", "r")
	partitions, size, sent := a.int("partitions", "1"), a.int("size", "100"), 0
	next := make([]uint64, partitions)
	err := t.begin()
	paced(a.float("rate", "1"), stop, func() {
		if err != nil {
			return
		}
		partition := int32(sent % partitions)
		seq := next[partition]
		next[partition]++
		sent++
		at := nowUs()
		t.told.Add(1)
		producer.Input() <- &sarama.ProducerMessage{
			Topic: topic, Partition: partition, Key: sarama.StringEncoder(writer),
			Value:    sarama.ByteEncoder(encode(run, writer, partition, seq, at, size)),
			Metadata: tag{partition, seq, at},
		}
		if t.size > 0 && sent%t.size == 0 {
			if err = t.end(); err == nil {
				err = t.begin()
			}
		}
	})
	if err == nil {
		err = t.end()
	}
	return sent, err
}

// base keeps the library's defaults except the protocol level, which the library cannot discover.
func base(a args) (*sarama.Config, error) {
	config := sarama.NewConfig()
	level, err := sarama.ParseKafkaVersion(a.get("kafka-version", "2.8.0"))
	config.Version = level
	if _, ok := a["metadata-max-age-ms"]; ok {
		config.Metadata.RefreshFrequency = time.Duration(a.int("metadata-max-age-ms", "0")) * time.Millisecond
	}
	return config, err
}

func producerConfig(a args) (*sarama.Config, error) {
	config, err := base(a)
	config.Producer.Partitioner = sarama.NewManualPartitioner
	config.Producer.Return.Successes = true
	switch a.get("acks", "") {
	case "all":
		config.Producer.RequiredAcks = sarama.WaitForAll
	case "1":
		config.Producer.RequiredAcks = sarama.WaitForLocal
	case "0":
		config.Producer.RequiredAcks = sarama.NoResponse
	}
	_, transactional := a["transaction"]
	if transactional || a.get("idempotent", "false") == "true" {
		// The library refuses idempotence without these two.
		config.Producer.Idempotent = true
		config.Producer.RequiredAcks = sarama.WaitForAll
		config.Net.MaxOpenRequests = 1
	}
	if id, ok := a["transaction"]; ok {
		config.Producer.Transaction.ID = id
	}
	if _, ok := a["linger-ms"]; ok {
		config.Producer.Flush.Frequency = time.Duration(a.int("linger-ms", "0")) * time.Millisecond
	}
	if name, ok := a["compression"]; ok && err == nil {
		err = config.Producer.Compression.UnmarshalText([]byte(name))
	}
	return config, err
}

func consumerConfig(a args, synchronous bool) (*sarama.Config, error) {
	config, err := base(a)
	config.Consumer.Return.Errors = true
	switch a.get("reset", "latest") {
	case "earliest":
		config.Consumer.Offsets.Initial = sarama.OffsetOldest
	case "none":
		refuse("sarama has no --reset none")
	}
	if a.get("strategy", "eager") != "eager" || a.get("protocol", "classic") != "classic" {
		refuse("sarama has only eager strategies and the classic protocol")
	}
	config.Consumer.Offsets.AutoCommit.Enable = !synchronous
	if id, ok := a["static-id"]; ok {
		config.Consumer.Group.InstanceId = id
	}
	if id, ok := a["member"]; ok {
		config.ClientID = id
	}
	return config, err
}

func consume(a args, h *history, stop <-chan struct{}) error {
	synchronous := a.get("commit", "auto") == "sync-each-second"
	config, err := consumerConfig(a, synchronous)
	if err != nil {
		return err
	}
	h.start(fmt.Sprintf("group=%s\tmember=%s\treset=%s\tcommit=%s", a.need("group"), a.get("member", "m"), a.get("reset", "latest"), a.get("commit", "auto")))
	group, err := sarama.NewConsumerGroup(strings.Split(a.need("bootstrap"), ","), a.need("group"), config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-stop; cancel() }()
	var noted sync.WaitGroup
	noted.Go(func() {
		for err := range group.Errors() {
			noteError(h, err)
		}
	})
	r := &reader{h: h, sync: synchronous, limit: int64(a.int("stop-at-end-count", "0")), done: cancel}
	for ctx.Err() == nil {
		if err := group.Consume(ctx, a.topics(), r); err != nil && ctx.Err() == nil {
			h.line("C.error", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
	err = group.Close()
	noted.Wait()
	h.end(fmt.Sprintf("polled=%d", r.polled.Load()))
	return err
}

func noteError(h *history, err error) {
	switch {
	case errors.Is(err, sarama.ErrOffsetOutOfRange):
		h.line("C.reset", "-", err)
	case strings.Contains(err.Error(), "kafka: error while consuming") || !strings.Contains(err.Error(), "commit"):
		h.line("C.error", err)
	default:
		h.line("C.commit", "fail", err)
	}
}

// reader is the handler of one member; the library calls it anew for each generation.
type reader struct {
	h      *history
	sync   bool
	limit  int64
	polled atomic.Int64
	done   func()

	// mu orders deliveries against commits: what Commit sends is exactly what `delivered` holds.
	mu        sync.Mutex
	delivered map[string]int64
	ended     chan struct{}
	committer sync.WaitGroup
}

func (r *reader) Setup(session sarama.ConsumerGroupSession) error {
	r.h.line("C.assign", r.h.names(session.Claims()))
	r.delivered, r.ended = map[string]int64{}, make(chan struct{})
	if r.sync {
		r.committer.Go(func() { r.commitRegularly(session) })
	}
	return nil
}

func (r *reader) Cleanup(session sarama.ConsumerGroupSession) error {
	close(r.ended)
	r.committer.Wait()
	if r.sync {
		r.commit(session)
	}
	r.h.line("C.revoke", r.h.names(session.Claims()))
	return nil
}

func (r *reader) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			r.deliver(session, message)
		case <-session.Context().Done():
			return nil
		}
	}
}

func (r *reader) deliver(session sarama.ConsumerGroupSession, message *sarama.ConsumerMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.polled(nowUs(), message.Topic, message.Partition, message.Offset, message.Value)
	session.MarkMessage(message, "")
	r.delivered[r.h.name(message.Topic, message.Partition)] = message.Offset + 1
	if r.polled.Add(1) == r.limit {
		r.done()
	}
}

func (r *reader) commitRegularly(session sarama.ConsumerGroupSession) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-r.ended:
			return
		case <-tick.C:
			r.commit(session)
		}
	}
}

// commit cannot tell success: the library reports failures through the error channel only. So no `C.commit ok` is written.
func (r *reader) commit(session sarama.ConsumerGroupSession) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.delivered) > 0 {
		session.Commit()
		r.delivered = map[string]int64{}
	}
}

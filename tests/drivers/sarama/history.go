package main

// Command line, clock, pace and history of the Go drivers; format: loadtest/README.md.
// The same file serves both Go drivers (they are separate modules so that their dependencies stay apart).

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// One reading is of both clocks.
var start = time.Now()

// nowUs is the monotonic clock, set to the wall clock once: a clock step cannot reorder events.
func nowUs() int64 { return start.UnixMicro() + time.Since(start).Microseconds() }

type args map[string]string

func parseArgs() (string, args) {
	if len(os.Args) < 2 || len(os.Args)%2 != 0 || (os.Args[1] != "producer" && os.Args[1] != "consumer") {
		refuse("usage: producer|consumer --name value ...")
	}
	values := args{}
	for i := 2; i < len(os.Args); i += 2 {
		values[strings.TrimPrefix(os.Args[i], "--")] = os.Args[i+1]
	}
	return os.Args[1], values
}

func refuse(text string) {
	fmt.Fprintln(os.Stderr, text)
	os.Exit(2)
}

func (a args) get(name, fallback string) string {
	if value, ok := a[name]; ok {
		return value
	}
	return fallback
}

func (a args) need(name string) string {
	value, ok := a[name]
	if !ok {
		refuse("missing --" + name)
	}
	return value
}

func (a args) float(name, fallback string) float64 {
	value, err := strconv.ParseFloat(a.get(name, fallback), 64)
	if err != nil {
		refuse("bad --" + name)
	}
	return value
}

func (a args) int(name, fallback string) int { return int(a.float(name, fallback)) }

func (a args) topics() []string { return strings.Split(a.need("topic"), ",") }

// stopChannel is closed by SIGTERM, SIGINT, the end of standard input, and after --duration-s.
func stopChannel(a args) chan struct{} {
	stop := make(chan struct{})
	var once sync.Once
	end := func() { once.Do(func() { close(stop) }) }
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-signals; end() }()
	if os.Getenv("CROSSOVER_WATCH_STDIN") == "1" {
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); end() }()
	}
	if seconds := a.float("duration-s", "0"); seconds > 0 {
		time.AfterFunc(time.Duration(seconds*float64(time.Second)), end)
	}
	return stop
}

// paced calls send at the rate until stop. A stall longer than a second is not caught up, so that it stays visible as a gap.
func paced(rate float64, stop <-chan struct{}, send func()) {
	base, count := time.Now(), 0
	for {
		late := time.Since(base) - time.Duration(float64(count)*float64(time.Second)/rate)
		if late > time.Second {
			base, count, late = time.Now(), 0, 0
		}
		if late < 0 {
			select {
			case <-stop:
				return
			case <-time.After(-late):
			}
		}
		select {
		case <-stop:
			return
		default:
		}
		send()
		count++
	}
}

type history struct {
	mu     sync.Mutex
	file   *os.File
	out    *bufio.Writer
	topics []string
	head   string
}

func openHistory(a args, role, library, version string) *history {
	file, err := os.Create(a.need("out"))
	if err != nil {
		refuse(err.Error())
	}
	head := "role=" + role + "\tlibrary=" + library + "\tversion=" + version + "\ttopic=" + a.need("topic") + "\t"
	h := &history{file: file, out: bufio.NewWriterSize(file, 1<<16), topics: a.topics(), head: head}
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			h.mu.Lock()
			_ = h.out.Flush()
			h.mu.Unlock()
		}
	}()
	return h
}

func (h *history) start(fields string) { h.raw(nowUs(), "E.start\t"+h.head+fields) }

func (h *history) line(event string, fields ...any) {
	text := event
	for _, field := range fields {
		text += "\t" + strings.Join(strings.Fields(fmt.Sprint(field)), " ")
	}
	h.raw(nowUs(), text)
}

func (h *history) raw(at int64, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, _ = fmt.Fprintf(h.out, "%d\t%s\n", at, text)
}

func (h *history) name(topic string, partition int32) string {
	if topic == h.topics[0] {
		return strconv.Itoa(int(partition))
	}
	return topic + ":" + strconv.Itoa(int(partition))
}

func (h *history) names(partitions map[string][]int32) string {
	var names []string
	for topic, numbers := range partitions {
		for _, number := range numbers {
			names = append(names, h.name(topic, number))
		}
	}
	return strings.Join(names, ",")
}

func (h *history) polled(at int64, topic string, partition int32, offset int64, value []byte) {
	fields := strings.SplitN(string(value), "|", 6)
	name := h.name(topic, partition)
	switch {
	case len(fields) < 6:
		h.raw(at, fmt.Sprintf("C.other\t%s\t%d", name, offset))
	case fields[2] != strconv.Itoa(int(partition)):
		h.raw(at, fmt.Sprintf("C.misplaced\t%s\t%d\t%s", name, offset, fields[2]))
	default:
		h.raw(at, fmt.Sprintf("C.poll\t%s\t%d\t%s\t%s\t%s", name, offset, fields[1], fields[3], fields[4]))
	}
}

func (h *history) end(fields ...any) {
	h.line("E.end", fields...)
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.out.Flush()
	_ = h.file.Close()
}

func encode(run, writer string, partition int32, seq uint64, sentUs int64, size int) []byte {
	value := []byte(fmt.Sprintf("%s|%s|%d|%d|%d|", run, writer, partition, seq, sentUs))
	for len(value) < size {
		value = append(value, 'x')
	}
	return value
}

"""What the Python drivers share: command line, pace, clock, history. Format: loadtest/README.md."""

import os
import signal
import sys
import threading
import time



def wall_ahead_ns():
    """How far the wall clock is ahead of the monotonic one. A process may be interrupted between reading the two, which makes it
    less: of many readings the largest is right."""
    return max(time.time_ns() - time.monotonic_ns() for _ in range(1000))


AHEAD_NS = wall_ahead_ns()


def now_us():
    """The monotonic clock, set to the wall clock once: a clock step cannot reorder events."""
    return (AHEAD_NS + time.monotonic_ns()) // 1000


class Args:
    def __init__(self, argv):
        if len(argv) % 2 == 0 or not argv or argv[0] not in ("producer", "consumer"):
            refuse("usage: producer|consumer --name value ...")
        self.role = argv[0]
        self.values = {name[2:]: value for name, value in zip(argv[1::2], argv[2::2])}

    def get(self, name, default=None):
        return self.values.get(name, default)

    def need(self, name):
        if name not in self.values:
            refuse("missing --" + name)
        return self.values[name]

    def topics(self):
        return self.need("topic").split(",")


def refuse(text):
    print(text, file=sys.stderr)
    sys.exit(2)


class Stop:
    """Set by SIGTERM, SIGINT, or the end of standard input."""

    def __init__(self):
        self.event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.event.set())
        if os.environ.get("CROSSOVER_WATCH_STDIN") == "1":
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while os.read(0, 4096):
            pass
        self.event.set()

    def __bool__(self):
        return self.event.is_set()


class Pace:
    """When the next record is due; a stall longer than a second is not caught up, so that it stays visible as a gap."""

    def __init__(self, rate, seconds):
        self.rate = rate
        self.base = time.monotonic()
        self.end = self.base + seconds if seconds > 0 else float("inf")
        self.count = 0

    def over(self):
        return time.monotonic() >= self.end

    def wait_s(self):
        """Seconds until the next record is due; not positive: due now."""
        late = time.monotonic() - self.base - self.count / self.rate
        if late > 1:
            self.base, self.count, late = time.monotonic(), 0, 0
        return -late

    def sent(self):
        self.count += 1


def encode(run, writer, partition, seq, sent_us, size):
    return f"{run}|{writer}|{partition}|{seq}|{sent_us}|".encode().ljust(size, b"x")


class History:
    def __init__(self, args, library, version):
        self.topics = args.topics()
        self.lock = threading.Lock()
        self.out = open(args.need("out"), "w", encoding="utf-8", buffering=1 << 16)
        self.out_head = ("role=" + args.role, "library=" + library, "version=" + version, "topic=" + args.need("topic"))
        threading.Thread(target=self._flush, daemon=True).start()

    def start(self, **fields):
        self.line("E.start", *self.out_head, *(f"{key}={value}" for key, value in fields.items()))

    def line(self, event, *fields, at=None):
        text = "\t".join([str(at or now_us()), event, *(" ".join(str(f).split()) for f in fields)])
        with self.lock:
            self.out.write(text + "\n")

    def name(self, topic, partition):
        return str(partition) if topic == self.topics[0] else f"{topic}:{partition}"

    def names(self, partitions):
        return ",".join(self.name(tp.topic, tp.partition) for tp in partitions)

    def polled(self, at, topic, partition, offset, value):
        fields = (value or b"").split(b"|", 5)
        name = self.name(topic, partition)
        if len(fields) < 6:
            self.line("C.other", name, offset, at=at)
        elif int(fields[2]) != partition:
            self.line("C.misplaced", name, offset, fields[2].decode(), at=at)
        else:
            with self.lock:
                self.out.write(f"{at}\tC.poll\t{name}\t{offset}\t{fields[1].decode()}\t{fields[3].decode()}\t{fields[4].decode()}\n")

    def end(self, **counts):
        self.line("E.end", *(f"{key}={value}" for key, value in counts.items()))
        with self.lock:
            self.out.close()

    def _flush(self):
        while True:
            time.sleep(0.05)
            with self.lock:
                if self.out.closed:
                    return
                self.out.flush()

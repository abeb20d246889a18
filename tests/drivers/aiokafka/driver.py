"""Load driver on aiokafka; command line and history format: loadtest/README.md."""

import asyncio
import sys
import time
from pathlib import Path

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, OffsetOutOfRangeError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from history import Args, History, Pace, Stop, encode, now_us, refuse


async def produce(args, history, stop):
    idempotent = args.get("idempotent", "false") == "true"
    options = {"bootstrap_servers": args.need("bootstrap"), "enable_idempotence": idempotent}
    acks = args.get("acks", "all" if idempotent else "1")
    if "acks" in args.values:
        options["acks"] = "all" if acks == "all" else int(acks)
    if "linger-ms" in args.values:
        options["linger_ms"] = int(args.need("linger-ms"))
    if args.get("compression", "none") != "none":
        options["compression_type"] = args.get("compression")
    history.start(writer=args.need("writer"), run=args.get("run", "r"), acks=acks, idempotent=str(idempotent).lower())
    counts, waiting = {"sent": 0, "ok": 0, "failed": 0}, set()
    producer = AIOKafkaProducer(**options)
    await producer.start()
    partitions = int(args.need("partitions"))
    next_seq = [0] * partitions
    pace = Pace(float(args.need("rate")), float(args.get("duration-s", "0")))
    while not stop and not pace.over():
        wait = pace.wait_s()
        if wait > 0:
            await asyncio.sleep(min(wait, 0.05))
            continue
        partition = counts["sent"] % partitions
        counts["sent"] += 1
        pace.sent()
        task = await send(args, history, producer, partition, next_seq[partition], counts)
        next_seq[partition] += 1
        if task is not None:
            waiting.add(task)
            task.add_done_callback(waiting.discard)
    await producer.flush()
    await asyncio.gather(*waiting)
    await producer.stop()
    history.end(**counts)


async def send(args, history, producer, partition, seq, counts):
    """Returns the task that notes the answer, or None if the library refused the record at once."""
    sent_us = now_us()
    writer = args.need("writer")
    value = encode(args.get("run", "r"), writer, partition, seq, sent_us, int(args.get("size", "100")))
    try:
        future = await producer.send(args.need("topic"), value, writer.encode(), partition=partition)
    except KafkaError as error:
        counts["failed"] += 1
        history.line("P.fail", partition, seq, type(error).__name__, error)
        return None
    return asyncio.ensure_future(delivered(history, future, partition, seq, sent_us, counts))


async def delivered(history, future, partition, seq, sent_us, counts):
    try:
        metadata = await future
    except KafkaError as error:
        counts["failed"] += 1
        history.line("P.fail", partition, seq, type(error).__name__, error)
        return
    counts["ok"] += 1
    # With acks=0 the library tells no metadata.
    history.line("P.ok", partition, seq, -1 if metadata is None else metadata.offset, sent_us)


class Reader(ConsumerRebalanceListener):
    """A group member."""

    def __init__(self, args, history):
        self.args, self.history = args, history
        self.sync = args.get("commit", "auto") == "sync-each-second"
        self.delivered, self.polled = {}, 0

    async def run(self, stop):
        args, history = self.args, self.history
        if args.get("strategy", "eager") != "eager" or args.get("protocol", "classic") != "classic":
            refuse("aiokafka has only eager strategies and the classic protocol")
        options = {"bootstrap_servers": args.need("bootstrap"), "group_id": args.need("group")}
        for name, key in {"reset": "auto_offset_reset", "static-id": "group_instance_id", "member": "client_id"}.items():
            if name in args.values:
                options[key] = args.need(name)
        if self.sync:
            options["enable_auto_commit"] = False
        history.start(group=args.need("group"), member=args.get("member", "m"), reset=args.get("reset", "latest"), commit=args.get("commit", "auto"))
        self.consumer = AIOKafkaConsumer(**options)
        self.consumer.subscribe(topics=args.topics(), listener=self)
        await self.consumer.start()
        await self.loop(stop)
        await self.commit()
        await self.consumer.stop()
        history.end(polled=self.polled)

    async def loop(self, stop):
        pace = Pace(1, float(self.args.get("duration-s", "0")))
        limit = int(self.args.get("stop-at-end-count", "0")) or float("inf")
        committed = time.monotonic()
        while not stop and not pace.over() and self.polled < limit:
            try:
                batches = await self.consumer.getmany(timeout_ms=50)
            except OffsetOutOfRangeError as error:
                self.history.line("C.reset", "-", error)
                continue
            except KafkaError as error:
                self.history.line("C.error", repr(error))
                continue
            self.take(batches)
            if self.sync and time.monotonic() - committed >= 1:
                await self.commit()
                committed = time.monotonic()

    def take(self, batches):
        at = now_us()
        for tp, records in batches.items():
            for record in records:
                self.polled += 1
                self.history.polled(at, tp.topic, tp.partition, record.offset, record.value)
                self.delivered[tp] = record.offset + 1

    async def commit(self):
        if not self.sync or not self.delivered:
            return
        offsets = dict(self.delivered)
        try:
            await self.consumer.commit(offsets)
        except (KafkaError, IllegalStateError) as error:
            self.history.line("C.commit", "fail", repr(error))
            return
        pairs = (f"{self.history.name(tp.topic, tp.partition)}={offset}" for tp, offset in offsets.items())
        self.history.line("C.commit", "ok", ",".join(pairs))
        for tp, offset in offsets.items():
            if self.delivered.get(tp) == offset:
                del self.delivered[tp]

    async def on_partitions_revoked(self, revoked: set[TopicPartition]):
        if revoked:
            await self.commit()
            self.history.line("C.revoke", self.history.names(revoked))
        self.delivered.clear()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]):
        self.history.line("C.assign", self.history.names(assigned))


async def main():
    args = Args(sys.argv[1:])
    stop = Stop()
    history = History(args, "aiokafka", aiokafka.__version__)
    try:
        await (produce(args, history, stop) if args.role == "producer" else Reader(args, history).run(stop))
    except Exception as error:
        history.line("E.error", repr(error))
        history.out.flush()
        raise


asyncio.run(main())

// Load driver on kafkajs; command line and history format: loadtest/README.md.
'use strict'

const fs = require('fs')
const { Kafka, CompressionTypes, logLevel } = require('kafkajs')
const { version } = require('kafkajs/package.json')

// The monotonic clock, set to the wall clock once: a clock step cannot reorder events.
const aheadNs = wallAheadNs()
const nowUs = () => (aheadNs + process.hrtime.bigint()) / 1000n
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

// How far the wall clock is ahead of the monotonic one. A process may be interrupted between reading the two, and a millisecond
// may have begun long before it is read; both make it less: of many readings the largest is right.
function wallAheadNs() {
  let ahead = 0n
  for (const end = process.hrtime.bigint() + 5_000_000n; process.hrtime.bigint() < end;) {
    const once = BigInt(Date.now()) * 1_000_000n - process.hrtime.bigint()
    if (once > ahead) ahead = once
  }
  return ahead
}

function refuse(text) {
  console.error(text)
  process.exit(2)
}

class Args {
  constructor(argv) {
    if (argv.length % 2 === 0 || !['producer', 'consumer'].includes(argv[0])) {
      refuse('usage: producer|consumer --name value ...')
    }
    this.role = argv[0]
    this.values = new Map()
    for (let i = 1; i < argv.length; i += 2) this.values.set(argv[i].replace(/^--/, ''), argv[i + 1])
  }
  has(name) {
    return this.values.has(name)
  }
  get(name, fallback) {
    return this.values.has(name) ? this.values.get(name) : fallback
  }
  need(name) {
    if (!this.values.has(name)) refuse('missing --' + name)
    return this.values.get(name)
  }
}

class History {
  constructor(args) {
    this.args = args
    this.topics = args.need('topic').split(',')
    this.file = fs.openSync(args.need('out'), 'w')
    this.pending = []
    this.timer = setInterval(() => this.flush(), 50)
  }
  start(fields) {
    const head = { role: this.args.role, library: 'kafkajs', version, topic: this.topics.join(','), ...fields }
    this.line('E.start', ...Object.entries(head).map(([key, value]) => `${key}=${value}`))
  }
  line(event, ...fields) {
    this.at(nowUs(), event, ...fields)
  }
  at(time, event, ...fields) {
    const clean = fields.map(field => String(field).replace(/[\t\r\n]+/g, ' '))
    this.pending.push([time, event, ...clean].join('\t') + '\n')
  }
  flush() {
    if (this.pending.length > 0) fs.writeSync(this.file, this.pending.splice(0).join(''))
  }
  name(topic, partition) {
    return topic === this.topics[0] ? String(partition) : `${topic}:${partition}`
  }
  polled(time, topic, partition, offset, value) {
    const fields = value === null ? [] : value.toString('latin1').split('|')
    const name = this.name(topic, partition)
    if (fields.length < 6) this.at(time, 'C.other', name, offset)
    else if (fields[2] !== String(partition)) this.at(time, 'C.misplaced', name, offset, fields[2])
    else this.at(time, 'C.poll', name, offset, fields[1], fields[3], fields[4])
  }
  end(counts) {
    this.line('E.end', ...Object.entries(counts).map(([key, value]) => `${key}=${value}`))
    clearInterval(this.timer)
    this.flush()
    fs.closeSync(this.file)
  }
}

// Resolves on SIGTERM, SIGINT, the end of standard input, and after --duration-s.
const stop = { now: false, waiting: [] }
function stopWhenTold(args) {
  const end = () => {
    stop.now = true
    stop.waiting.splice(0).forEach(resolve => resolve())
  }
  process.on('SIGTERM', end)
  process.on('SIGINT', end)
  if (process.env.CROSSOVER_WATCH_STDIN === '1') {
    process.stdin.on('end', end).on('close', end).on('error', end).resume()
    process.stdin.unref?.()
  }
  const seconds = Number(args.get('duration-s', 0))
  if (seconds > 0) setTimeout(end, seconds * 1000)
  return end
}
const stopped = () => (stop.now ? Promise.resolve() : new Promise(resolve => stop.waiting.push(resolve)))

// A position reset is told by a log line only.
function client(args, history) {
  const logCreator = () => entry => {
    const text = `${entry.label} ${entry.namespace} ${entry.log.message} ${entry.log.error ?? ''}`
    console.error(text)
    if (/offset out of range/i.test(entry.log.message)) history.line('C.reset', '-', text)
  }
  const config = { brokers: args.need('bootstrap').split(','), logLevel: logLevel.WARN, logCreator }
  if (args.has('member')) config.clientId = args.get('member')
  return new Kafka(config)
}

/** What producers and consumers take alike. */
function common(args) {
  return args.has('metadata-max-age-ms') ? { metadataMaxAge: Number(args.get('metadata-max-age-ms')) } : {}
}

async function produce(args, history) {
  const acks = { all: -1, 1: 1, 0: 0 }[args.get('acks', 'all')]
  const writer = args.need('writer')
  const idempotent = args.get('idempotent', 'false') === 'true'
  if (args.has('linger-ms')) refuse('kafkajs has no linger')
  const compression = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }[args.get('compression', 'none')]
  if (compression === undefined) refuse('kafkajs itself has only gzip')
  history.start({ writer, run: args.get('run', 'r'), acks: args.get('acks', 'all'), idempotent })
  const producer = client(args, history).producer({ ...common(args), ...(args.has('idempotent') ? { idempotent } : {}) })
  await producer.connect()
  const counts = { sent: 0, ok: 0, failed: 0 }
  const next = new Array(Number(args.need('partitions'))).fill(0)
  const pace = { rate: Number(args.need('rate')), base: nowUs(), count: 0 }
  // As an application does it: the next send waits for the answer to the last.
  while (!stop.now) {
    const messages = due(args, pace, next, counts)
    if (messages.length === 0) await sleep(2)
    else await sendBatch(producer, { topic: args.need('topic'), messages, acks, compression }, history, counts)
  }
  await producer.disconnect()
  history.end(counts)
}

// The records due now. A stall longer than a second is not caught up, so that it stays visible as a gap.
function due(args, pace, next, counts) {
  let target = Math.floor((Number(nowUs() - pace.base) / 1e6) * pace.rate) + 1
  if (target - pace.count > Math.max(pace.rate, 1) + 1) {
    pace.base = nowUs()
    pace.count = 0
    target = 1
  }
  const messages = []
  for (; pace.count < target; pace.count++) {
    const partition = counts.sent++ % next.length
    messages.push(message(args, partition, next[partition]++))
  }
  return messages
}

function message(args, partition, seq) {
  const sentUs = nowUs()
  const head = `${args.get('run', 'r')}|${args.need('writer')}|${partition}|${seq}|${sentUs}|`
  const value = head.padEnd(Number(args.get('size', 100)), 'x')
  return { key: args.need('writer'), value, partition, seq, sentUs }
}

async function sendBatch(producer, batch, history, counts) {
  try {
    const answers = (await producer.send(batch)) ?? []
    const bases = new Map(answers.map(answer => [answer.partition, BigInt(answer.baseOffset ?? -1)]))
    for (const { partition, seq, sentUs } of batch.messages) {
      const base = bases.get(partition) ?? -1n
      // The answer has only the first offset of the batch.
      if (base >= 0n) bases.set(partition, base + 1n)
      counts.ok++
      history.line('P.ok', partition, seq, batch.acks === 0 ? -1 : base, sentUs)
    }
  } catch (error) {
    for (const { partition, seq } of batch.messages) {
      counts.failed++
      history.line('P.fail', partition, seq, error.type ?? error.name, error.message)
    }
  }
}

class Reader {
  constructor(args, history, end) {
    this.args = args
    this.history = history
    this.end = end
    this.sync = args.get('commit', 'auto') === 'sync-each-second'
    this.limit = Number(args.get('stop-at-end-count', 0))
    this.polled = 0
    this.assigned = ''
    this.delivered = new Map()
    this.closing = false
    this.committing = Promise.resolve()
  }

  async run() {
    const { args, history } = this
    const option = (name, allowed) => {
      if (!allowed.includes(args.get(name, allowed[0]))) refuse(`kafkajs has no --${name} ${args.get(name)}`)
    }
    option('strategy', ['eager'])
    option('protocol', ['classic'])
    option('reset', ['latest', 'earliest'])
    if (args.has('static-id')) refuse('kafkajs has no static membership')
    const fromBeginning = args.get('reset', 'latest') === 'earliest'
    history.start({
      group: args.need('group'), member: args.get('member', 'm'), reset: args.get('reset', 'latest'), commit: args.get('commit', 'auto')
    })
    this.consumer = client(args, history).consumer({ ...common(args), groupId: args.need('group') })
    this.listen()
    await this.consumer.connect()
    await this.consumer.subscribe({ topics: history.topics, fromBeginning })
    await this.consumer.run({ autoCommit: !this.sync, eachBatchAutoResolve: true, eachBatch: batch => this.take(batch) })
    const timer = this.sync ? setInterval(() => this.commit(), 1000) : undefined
    await stopped()
    clearInterval(timer)
    // A stopped consumer cannot commit any more, so with own commits deliveries end first.
    this.closing = this.sync
    await this.commit()
    await this.consumer.stop()
    await this.consumer.disconnect()
    this.revoke()
    history.end({ polled: this.polled })
  }

  listen() {
    const { consumer, history } = this
    consumer.on(consumer.events.CRASH, ({ payload }) =>
      history.line('C.error', `CRASH restart=${payload.restart} ${payload.error}`))
    consumer.on(consumer.events.REBALANCING, () => this.revoke())
    consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
      this.revoke()
      const entries = Object.entries(payload.memberAssignment)
      this.assigned = entries.flatMap(([topic, parts]) => parts.map(part => history.name(topic, part))).join(',')
      this.delivered.clear()
      history.line('C.assign', this.assigned)
    })
    consumer.on(consumer.events.COMMIT_OFFSETS, ({ payload }) => {
      const parts = payload.topics.flatMap(({ topic, partitions }) =>
        partitions.map(({ partition, offset }) => `${history.name(topic, partition)}=${offset}`))
      history.line('C.commit', 'ok', parts.join(','))
    })
  }

  // The library always gives up everything in a rebalance.
  revoke() {
    if (this.assigned !== '') this.history.line('C.revoke', this.assigned)
    this.assigned = ''
  }

  async take({ batch, isStale, isRunning }) {
    if (this.closing || isStale() || !isRunning()) return
    const time = nowUs()
    for (const { offset, value } of batch.messages) {
      this.polled++
      this.history.polled(time, batch.topic, batch.partition, offset, value)
      this.delivered.set(`${batch.topic}\t${batch.partition}`, BigInt(offset) + 1n)
    }
    if (this.limit > 0 && this.polled >= this.limit) this.end()
  }

  commit() {
    // One after the other, so that a later commit never overtakes an earlier one.
    this.committing = this.committing.then(async () => {
      // While the member rejoins, every commit would be refused.
      if (!this.sync || this.assigned === '' || this.delivered.size === 0) return
      const taken = [...this.delivered]
      this.delivered.clear()
      const offsets = taken.map(([key, offset]) => {
        const [topic, partition] = key.split('\t')
        return { topic, partition: Number(partition), offset: String(offset) }
      })
      try {
        await this.consumer.commitOffsets(offsets)
      } catch (error) {
        this.history.line('C.commit', 'fail', error.type ?? error.name, error.message)
        for (const [key, offset] of taken) if (!this.delivered.has(key)) this.delivered.set(key, offset)
      }
    })
    return this.committing
  }
}

async function main() {
  const args = new Args(process.argv.slice(2))
  process.env.KAFKAJS_NO_PARTITIONER_WARNING = '1'
  const end = stopWhenTold(args)
  const history = new History(args)
  const failed = error => {
    history.line('E.error', error.stack ?? error)
    history.flush()
    console.error(error)
    process.exit(1)
  }
  process.on('uncaughtException', failed)
  process.on('unhandledRejection', failed)
  await (args.role === 'producer' ? produce(args, history) : new Reader(args, history, end).run())
  process.exit(0)
}

main()

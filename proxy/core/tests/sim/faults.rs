//! What goes wrong, until it is healed.

use crate::coverage::Seen;
use crate::world::{Ev, MS, World, trace};
use crossover_core::ids::ClusterSide;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    CutLink,
    CutClient,
    Elect,
    KillBroker,
    Stall,
    ShortIsr,
    Crash,
    Retention,
    Move,
    /// Of the transaction coordinator.
    Coordinate,
}

const KINDS: [Fault; 12] = [
    Fault::CutLink,
    Fault::CutLink,
    Fault::CutClient,
    Fault::Elect,
    Fault::Elect,
    Fault::KillBroker,
    Fault::Stall,
    Fault::ShortIsr,
    Fault::Crash,
    Fault::Retention,
    Fault::Move,
    Fault::Move,
];

impl World {
    pub(crate) fn plan_faults(&mut self) {
        for _ in 0..self.shape.faults {
            let at = self.rng.up_to(self.shape.heal_at);
            let fault = self.rng.pick(&KINDS);
            self.plan(at, Ev::Fault(fault));
        }
        let more = if self.transactors.is_empty() { 0 } else { self.shape.faults / 2 };
        for _ in 0..more {
            let at = self.rng.up_to(self.shape.heal_at);
            self.plan(at, Ev::Fault(Fault::Coordinate));
        }
    }

    fn some_place(&mut self) -> (ClusterSide, i32) {
        let side = self.rng.pick(&ClusterSide::BOTH);
        (side, self.rng.up_to(self.shape.partitions as u64 - 1) as i32)
    }

    pub(crate) fn on_fault(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        trace!(self, "fault {fault:?}");
        match fault {
            Fault::CutLink => {
                let open: Vec<usize> = (0..self.links.len())
                    .filter(|l| self.links[*l].proxy_open && self.links[*l].established)
                    .collect();
                if !open.is_empty() {
                    let link = self.rng.pick(&open);
                    self.cut(link);
                }
            }
            Fault::CutClient => {
                let open: Vec<usize> = (0..self.conns.len()).filter(|c| self.conns[*c].client_open).collect();
                if !open.is_empty() {
                    let conn = self.rng.pick(&open);
                    self.cut_client(conn);
                }
            }
            Fault::Elect => {
                let (side, partition) = self.some_place();
                self.on_elect(side, partition);
            }
            Fault::KillBroker => {
                let side = self.rng.pick(&ClusterSide::BOTH);
                let broker = self.rng.up_to(1) as i32;
                self.lose_broker(side, broker);
            }
            Fault::Stall => {
                let side = self.rng.pick(&ClusterSide::BOTH);
                let broker = self.rng.up_to(1) as usize;
                let until = self.now + self.rng.between(5, 1_000) * MS;
                let known = &mut self.clusters[side.index()].brokers[broker].stalled_until;
                *known = until.max(*known);
            }
            Fault::ShortIsr => {
                let (side, partition) = self.some_place();
                self.clusters[side.index()].logs[partition as usize].short = true;
                let after = self.rng.between(5, 1_500) * MS;
                self.plan(after, Ev::IsrBack { side, partition });
            }
            Fault::Crash => self.crash(),
            Fault::Retention => {
                let (side, partition) = self.some_place();
                let log = &mut self.clusters[side.index()].logs[partition as usize];
                let to = log.start + self.rng.up_to((log.committed - log.start) as u64) as i64;
                // Whole segments go: a log starts with a batch.
                let to = log.batch_at(to).map_or(to, |b| b.base);
                log.delete_to(to);
            }
            Fault::Move => self.some_client_looks(),
            Fault::Coordinate => {
                let side = self.rng.pick(&ClusterSide::BOTH);
                let to = 1 - self.clusters[side.index()].transactions.broker;
                if self.clusters[side.index()].is_up(to) {
                    self.move_txn_coordinator(side, to);
                }
            }
        }
    }

    fn lose_broker(&mut self, side: ClusterSide, broker: i32) {
        if !self.clusters[side.index()].brokers.iter().all(|b| b.up) {
            return;
        }
        self.kill_broker(side, broker);
        self.move_coordinator(side, 1 - broker);
        self.move_txn_coordinator(side, 1 - broker);
        for partition in 0..self.logs() {
            if self.clusters[side.index()].logs[partition as usize].leader == broker {
                let after = self.rng.between(50, 800) * MS;
                self.plan(after, Ev::Elect { side, partition });
            }
        }
        let after = self.rng.between(100, 2_500) * MS;
        self.plan(after, Ev::BrokerUp { side, broker });
    }

    pub(crate) fn on_elect(&mut self, side: ClusterSide, partition: i32) {
        let cluster = &mut self.clusters[side.index()];
        let log = &mut cluster.logs[partition as usize];
        let next = 1 - log.leader;
        if !cluster.brokers[next as usize].up {
            return;
        }
        let lost = log.elect(next, &mut self.rng);
        if partition == 0 {
            // What the broker led, the other one leads.
            self.move_coordinator(side, next);
        }
        trace!(self, "{side} {partition} is led by {next}, {} batches are lost", lost.len());
        if !lost.is_empty() {
            self.see(Seen::ElectionLosesTail);
        }
        let judged = self.oracle.truncated(side, partition, &lost);
        self.judge(judged);
        self.look_at_parked(side, partition);
        self.on_isr_back(side, partition);
    }

    pub(crate) fn on_broker_up(&mut self, side: ClusterSide, broker: i32) {
        let cluster = &mut self.clusters[side.index()];
        cluster.brokers[broker as usize].up = true;
        trace!(self, "{side} broker {broker} is up");
        for partition in 0..self.logs() {
            let leader = self.clusters[side.index()].logs[partition as usize].leader;
            if !self.clusters[side.index()].is_up(leader) {
                self.on_elect(side, partition);
            }
        }
    }

    /// From now on nothing goes wrong.
    pub(crate) fn on_heal(&mut self) {
        trace!(self, "healed");
        self.healed = true;
        for side in ClusterSide::BOTH {
            for broker in 0..2 {
                self.on_broker_up(side, broker);
                self.clusters[side.index()].brokers[broker as usize].stalled_until = 0;
            }
            for partition in 0..self.logs() {
                self.on_isr_back(side, partition);
            }
        }
        if self.proxy.unsealed {
            // The remedy that the alarm names.
            self.crash();
        }
        self.plan(MS, Ev::Operate);
    }
}

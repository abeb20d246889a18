//! Connections and what travels on them. A broker works through what it has received although the other end is gone; what
//! was still under way may arrive or not, but never without what went before it.

use crate::broker::Parked;
use crate::coverage::Seen;
use crate::wire::{self, Asked};
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::{ClusterSide, VirtualNode};
use crossover_core::schema::Struct;
use crossover_core::session::{Session, UpstreamId};
use std::collections::{BTreeMap, VecDeque};

/// A client's connection.
pub(crate) struct Conn {
    pub(crate) who: Who,
    /// Of the proxy's process.
    pub(crate) incarnation: u32,
    node: VirtualNode,
    pub(crate) session: Option<Session>,
    /// The client takes it for open.
    pub(crate) client_open: bool,
    /// The proxy takes it for open.
    pub(crate) proxy_open: bool,
    pub(crate) upstreams: BTreeMap<UpstreamId, usize>,
    pub(crate) timer_at: u64,
    pub(crate) waking: bool,
    /// When it last used the newest snapshot.
    pub(crate) loaded_at: u64,
    pub(crate) gone: bool,
    to_proxy: u64,
    pub(crate) to_client: u64,
    /// A producer without sequences has heard of an error here that no broker said. Its next batches are under way already,
    /// and must not be appended first: nothing more of it is passed on (RULES R2).
    pub(crate) is_told_off: bool,
}

/// A connection of the proxy to a broker.
pub(crate) struct Link {
    pub(crate) id: UpstreamId,
    pub(crate) conn: usize,
    pub(crate) side: ClusterSide,
    pub(crate) broker: i32,
    pub(crate) proxy_open: bool,
    pub(crate) broker_open: bool,
    pub(crate) established: bool,
    /// Sent before the connection was established.
    early: Vec<Bytes>,
    inbox: VecDeque<Bytes>,
    busy: bool,
    pub(crate) parked: Option<Parked>,
    pub(crate) token: u64,
    /// What arrives later was lost with the connection.
    until: u64,
    to_broker: u64,
    to_proxy: u64,
}

impl World {
    pub(crate) fn connect(&mut self, who: Who, node: VirtualNode) -> Option<usize> {
        if !self.proxy.up {
            return None;
        }
        let session = self.proxy.session(node, self.shape.hold_ms, self.rng.next());
        self.conns.push(Conn {
            who,
            incarnation: self.proxy.incarnation,
            node,
            session: Some(session),
            client_open: true,
            proxy_open: true,
            upstreams: BTreeMap::new(),
            timer_at: u64::MAX,
            waking: false,
            loaded_at: 0,
            gone: false,
            to_proxy: 0,
            to_client: 0,
            is_told_off: false,
        });
        Some(self.conns.len() - 1)
    }

    /// A client sends a request. When it comes to the proxy.
    pub(crate) fn send(&mut self, conn: usize, frame: Bytes) -> u64 {
        let at = self.delay() + self.now;
        let to = &mut self.conns[conn].to_proxy;
        *to = at.max(*to);
        let at = *to;
        let sent_at = self.now;
        self.plan_at(at, Ev::Request { conn, frame, sent_at });
        at
    }

    /// The client's end closes, or the way to it does: both ends learn it, each in its time.
    pub(crate) fn cut_client(&mut self, conn: usize) {
        let (one, other) = (self.delay(), self.delay());
        let to_proxy = self.conns[conn].to_proxy.max(self.now + one);
        self.plan_at(to_proxy, Ev::ClientGone { conn });
        self.plan(other, Ev::Hangup { conn });
    }

    pub(crate) fn dial(&mut self, conn: usize, id: UpstreamId, node: VirtualNode) {
        if self.conns[conn].node.side != node.side {
            self.see(Seen::StaleCompanion);
        }
        let link = self.links.len();
        self.links.push(Link {
            id,
            conn,
            side: node.side,
            broker: node.broker,
            proxy_open: true,
            broker_open: true,
            established: false,
            early: Vec::new(),
            inbox: VecDeque::new(),
            busy: false,
            parked: None,
            token: 0,
            until: u64::MAX,
            to_broker: 0,
            to_proxy: 0,
        });
        self.conns[conn].upstreams.insert(id, link);
        let after = self.delay();
        self.plan(after, Ev::Dialled { link, conn });
    }

    pub(crate) fn on_dialled(&mut self, link: usize, conn: usize) {
        if !self.links[link].proxy_open {
            return;
        }
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        if !self.clusters[side.index()].is_up(broker) || !self.links[link].broker_open {
            self.links[link].broker_open = false;
            return self.on_lost(link);
        }
        self.links[link].established = true;
        let early = std::mem::take(&mut self.links[link].early);
        early.into_iter().for_each(|frame| self.pass_on(link, frame));
        let upstream = self.links[link].id;
        self.apply(conn, crossover_core::session::Event::Connected { upstream });
    }

    pub(crate) fn pass_on(&mut self, link: usize, frame: Bytes) {
        if !self.links[link].established {
            return self.links[link].early.push(frame);
        }
        let at = self.delay() + self.now;
        let to = &mut self.links[link].to_broker;
        *to = at.max(*to);
        let at = *to;
        self.plan_at(at, Ev::BrokerIn { link, frame });
    }

    /// The connection breaks. What is under way arrives up to some moment.
    pub(crate) fn cut(&mut self, link: usize) {
        if !self.links[link].proxy_open {
            return;
        }
        let survives = if self.rng.chance(300) { 0 } else { self.rng.up_to(self.shape.pace * 2) };
        self.links[link].until = self.now + survives;
        let after = self.delay();
        let at = self.links[link].to_proxy.max(self.now + after);
        if self.links[link].busy || !self.links[link].inbox.is_empty() {
            self.see(Seen::LateAppend);
        }
        trace!(self, "cut link {link}");
        self.links[link].token = u64::MAX;
        self.plan_at(at, Ev::Lost { link });
    }

    /// Whether nobody waits at the other end for what a broker does.
    pub(crate) fn is_cut(&self, link: usize) -> bool {
        self.links[link].until != u64::MAX || !self.links[link].proxy_open
    }

    /// The proxy's process has ended: what it has written arrives up to some moment, and nobody is told anything.
    pub(crate) fn leave(&mut self, link: usize) {
        if self.links[link].until == u64::MAX && self.rng.chance(500) {
            self.links[link].until = self.now + self.rng.up_to(self.shape.pace * 2);
        }
        if self.links[link].busy {
            self.see(Seen::LateAppend);
        }
        self.links[link].token = u64::MAX;
    }

    /// The proxy ends the connection, orderly: what it has sent arrives, no answer is read any more.
    pub(crate) fn half_close(&mut self, link: usize) {
        self.links[link].proxy_open = false;
    }

    pub(crate) fn on_broker_in(&mut self, link: usize, frame: Bytes) {
        let at = &mut self.links[link];
        if !at.broker_open || self.now > at.until {
            return;
        }
        at.inbox.push_back(frame);
        self.run_soon(link);
    }

    /// Brokers take a connection's next request only when the last one is answered.
    fn run_soon(&mut self, link: usize) {
        let at = &mut self.links[link];
        if at.busy || at.inbox.is_empty() {
            return;
        }
        at.busy = true;
        let (side, broker) = (at.side, at.broker);
        let mut after = self.rng.between(10, 400);
        if !self.healed && self.rng.chance(self.shape.rough) {
            after = self.rng.between(5, 300) * MS;
        }
        let stalled = self.clusters[side.index()].brokers[broker as usize].stalled_until;
        let at = stalled.max(self.now + after);
        self.plan_at(at, Ev::BrokerRun { link });
    }

    pub(crate) fn on_broker_run(&mut self, link: usize) {
        let at = &mut self.links[link];
        if !at.broker_open {
            return;
        }
        let Some(frame) = at.inbox.pop_front() else { return };
        let asked = match wire::read_request(&frame) {
            Ok(asked) => asked,
            Err(error) => return self.fail(format!("a broker cannot read a request: {error}")),
        };
        match asked.key {
            wire::PRODUCE => self.produce(link, asked),
            wire::FETCH => self.fetch(link, asked, true),
            wire::LIST_OFFSETS => self.list_offsets(link, &asked),
            wire::FIND_COORDINATOR | wire::OFFSET_COMMIT | wire::OFFSET_FETCH => {
                self.coordinate(link, &asked)
            }
            wire::DELETE_RECORDS => self.delete(link, &asked),
            wire::OFFSET_FOR_LEADER_EPOCH => self.end_epoch(link, &asked),
            wire::INIT_PRODUCER_ID | wire::ADD_PARTITIONS_TO_TXN | wire::END_TXN => {
                self.transact(link, &asked)
            }
            wire::API_VERSIONS => self.respond(link, &asked, &wire::response(wire::API_VERSIONS)),
            other => self.fail(format!("the model knows no API {other}")),
        }
    }

    pub(crate) fn respond(&mut self, link: usize, asked: &Asked, body: &Struct) {
        let frame = wire::answer(asked.key, asked.version, asked.correlation, body);
        self.finish(link, Some(frame));
    }

    /// The connection's next request may be taken.
    pub(crate) fn finish(&mut self, link: usize, frame: Option<Bytes>) {
        let lose = !self.healed && frame.is_some() && self.rng.chance(self.shape.rough / 4);
        if lose && self.links[link].until == u64::MAX {
            self.cut(link);
        } else if let Some(frame) = frame
            && self.links[link].proxy_open
            && self.links[link].until == u64::MAX
        {
            let at = self.delay() + self.now;
            let to = &mut self.links[link].to_proxy;
            *to = at.max(*to);
            let at = *to;
            self.plan_at(at, Ev::Answer { link, frame });
        }
        self.links[link].busy = false;
        self.run_soon(link);
    }

    /// A broker dies: nothing of what it has received is done any more.
    pub(crate) fn kill_broker(&mut self, side: ClusterSide, broker: i32) {
        self.clusters[side.index()].brokers[broker as usize].up = false;
        for link in 0..self.links.len() {
            let at = &self.links[link];
            if at.side == side && at.broker == broker && at.broker_open {
                self.unpark(link);
                self.links[link].inbox.clear();
                self.links[link].broker_open = false;
                if self.links[link].established {
                    self.cut(link);
                }
            }
        }
    }
}

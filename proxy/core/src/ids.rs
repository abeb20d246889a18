//! The identities and number spaces of the system, each its own type so that the compiler keeps them apart.

use std::fmt;

/// The role of a physical cluster in the migration. `Source` is where topics live before any flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterSide {
    Source,
    Target,
}

impl ClusterSide {
    pub const BOTH: [ClusterSide; 2] = [ClusterSide::Source, ClusterSide::Target];

    #[must_use]
    pub fn other(self) -> ClusterSide {
        match self {
            ClusterSide::Source => ClusterSide::Target,
            ClusterSide::Target => ClusterSide::Source,
        }
    }

    /// 0 for the source, 1 for the target: the low bit of a virtual node id.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            ClusterSide::Source => 0,
            ClusterSide::Target => 1,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ClusterSide::Source => "source",
            ClusterSide::Target => "target",
        }
    }

    /// The inverse of [`ClusterSide::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<ClusterSide> {
        match text {
            "source" => Some(ClusterSide::Source),
            "target" => Some(ClusterSide::Target),
            _ => None,
        }
    }
}

impl fmt::Display for ClusterSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A broker as clients see it: one (side, broker id). `V = 2·n + side`; negative ids are sentinels and pass unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualNode {
    pub side: ClusterSide,
    /// The broker's id in its own cluster, ≥ 0.
    pub broker: i32,
}

/// The largest native broker id the mapping can present.
pub const NODE_ID_MAX: i32 = (i32::MAX - 1) / 2;

impl VirtualNode {
    #[must_use]
    pub fn new(side: ClusterSide, broker: i32) -> VirtualNode {
        VirtualNode { side, broker }
    }

    /// The id clients see.
    #[must_use]
    pub fn to_virtual(self) -> i32 {
        to_virtual_node(self.side, self.broker)
    }

    /// The node a client means; `None` for sentinels (negative ids).
    #[must_use]
    pub fn from_virtual(id: i32) -> Option<VirtualNode> {
        if id < 0 {
            return None;
        }
        let side = if id % 2 == 0 { ClusterSide::Source } else { ClusterSide::Target };
        Some(VirtualNode { side, broker: id / 2 })
    }
}

/// `n → V`; negative ids are sentinels and pass unchanged. Ids above [`NODE_ID_MAX`] become −1 (no such node).
#[must_use]
pub fn to_virtual_node(side: ClusterSide, native: i32) -> i32 {
    match native {
        n if n < 0 => n,
        n if n > NODE_ID_MAX => -1,
        n => 2 * n + side.index() as i32,
    }
}

/// A position in the virtual log of a partition: what clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualOffset(pub i64);

/// A position in the log of one cluster. Which cluster is said by its context (an era, a side).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NativeOffset(pub i64);

/// The version of the route table. Strictly rises with each published table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// A Kafka topic id (UUID, network byte order).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    pub const ZERO: TopicId = TopicId([0; 16]);

    #[must_use]
    pub fn is_zero(self) -> bool {
        self == TopicId::ZERO
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_node_is_a_bijection_and_sentinels_pass() {
        for side in ClusterSide::BOTH {
            for broker in [0, 1, 2, 1001, NODE_ID_MAX] {
                let node = VirtualNode::new(side, broker);
                assert_eq!(VirtualNode::from_virtual(node.to_virtual()), Some(node));
            }
        }
        assert_eq!(to_virtual_node(ClusterSide::Target, -1), -1);
        assert_eq!(to_virtual_node(ClusterSide::Source, NODE_ID_MAX + 1), -1);
        assert_eq!(VirtualNode::from_virtual(-2), None);
    }
}

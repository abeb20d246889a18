//! Places where a virtual log goes wrong if it is built naively: leader epochs that fall, idle partitions, positions at a
//! boundary, markers at a log's end, producer ids of two clusters, topics that are made anew, clients that leave
//! the proxy.

#[path = "traps/boundary_positions.rs"]
mod boundary_positions;
#[path = "traps/control_markers.rs"]
mod control_markers;
#[path = "traps/group_moves.rs"]
mod group_moves;
#[path = "traps/idle_partitions.rs"]
mod idle_partitions;
#[path = "traps/leader_epochs.rs"]
mod leader_epochs;
#[path = "traps/leaving.rs"]
mod leaving;
#[path = "traps/producer_ids.rs"]
mod producer_ids;
#[path = "traps/topic_identity.rs"]
mod topic_identity;
#[path = "traps/unknown_outcomes.rs"]
mod unknown_outcomes;

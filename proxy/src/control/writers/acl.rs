//! Access control lists of a cluster's topics, as far as writers are kept out by them (KIP-11, KIP-290).

use crate::control::client::{Address, Client, request};
use anyhow::anyhow;
use crossover_core::api::key;
use crossover_core::schema::Struct;
use serde::{Deserialize, Serialize};

/// `org.apache.kafka.common.resource.ResourceType.TOPIC`
const TOPIC: i8 = 2;
/// `org.apache.kafka.common.resource.PatternType`: whatever applies to a name, and an entry for just this name.
const MATCH: i8 = 2;
const LITERAL: i8 = 3;
/// `org.apache.kafka.common.acl.AclOperation`
const ANY: i8 = 1;
const ALL: i8 = 2;
const WRITE: i8 = 4;
/// `org.apache.kafka.common.acl.AclPermissionType`
const DENY: i8 = 2;
const ALLOW: i8 = 3;
const EVERY_HOST: &str = "*";
const EVERYBODY: &str = "User:*";
/// No authorizer is configured.
const SECURITY_DISABLED: i16 = 54;
const CLUSTER_AUTHORIZATION_FAILED: i16 = 31;

/// An entry of one topic, for every host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Acl {
    principal: String,
    operation: i8,
    permission: i8,
}

impl Acl {
    pub(crate) fn denies_writing(principal: &str) -> Acl {
        Acl { principal: principal.to_owned(), operation: WRITE, permission: DENY }
    }

    /// A topic with any entry at all is closed to everybody whom no entry allows it, also where
    /// `allow.everyone.if.no.acl.found` let them in before.
    fn allows_everything() -> Acl {
        Acl { principal: EVERYBODY.to_owned(), operation: ALL, permission: ALLOW }
    }
}

/// Why a cluster does not say who may do what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AclError {
    #[error("the cluster has no authorizer")]
    NoAuthorizer,
    #[error("crossover may not {0}: its principal needs DESCRIBE and ALTER on the cluster")]
    NotAllowed(&'static str),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// What keeps `principals` from writing to a topic that has these entries: those to add.
pub(crate) fn fence(principals: &[String], present: &[Acl]) -> Vec<Acl> {
    let denials = principals.iter().map(|principal| Acl::denies_writing(principal));
    let mut fence: Vec<Acl> = denials.filter(|denial| !present.contains(denial)).collect();
    if present.is_empty() && !fence.is_empty() {
        fence.push(Acl::allows_everything());
    }
    fence
}

/// Every entry that applies to a topic, as one broker has it: each decides by its own copy.
///
/// # Errors
/// [`AclError`]
pub(crate) async fn describe(client: &Client, at: &Address, topic: &str) -> Result<Vec<Acl>, AclError> {
    let mut body = request(key::DESCRIBE_ACLS);
    body.set("ResourceTypeFilter", TOPIC);
    body.set("ResourceNameFilter", topic);
    body.set("PatternTypeFilter", MATCH);
    body.set("PrincipalFilter", None::<&str>);
    body.set("HostFilter", None::<&str>);
    body.set("Operation", ANY);
    body.set("PermissionType", ANY);
    let answer = call(client, at, key::DESCRIBE_ACLS, &body).await?;
    judge(&answer, "read access control lists")?;
    let acls = answer.structs("Resources").flat_map(|resource| resource.structs("Acls"));
    Ok(acls.map(read).collect())
}

/// # Errors
/// [`AclError`]; then some of them may be there.
pub(crate) async fn create(client: &Client, at: &Address, topic: &str, acls: &[Acl]) -> Result<(), AclError> {
    let mut body = request(key::CREATE_ACLS);
    for acl in acls {
        let mut creation = body.new_element("Creations");
        creation.set("ResourceType", TOPIC);
        creation.set("ResourceName", topic);
        creation.set("ResourcePatternType", LITERAL);
        creation.set("Principal", acl.principal.as_str());
        creation.set("Host", EVERY_HOST);
        creation.set("Operation", acl.operation);
        creation.set("PermissionType", acl.permission);
        body.push("Creations", creation);
    }
    let answer = call(client, at, key::CREATE_ACLS, &body).await?;
    answer.structs("Results").try_for_each(|result| judge(result, "add access control lists"))
}

/// # Errors
/// [`AclError`]; then some of them may still be there.
pub(crate) async fn delete(client: &Client, at: &Address, topic: &str, acls: &[Acl]) -> Result<(), AclError> {
    let mut body = request(key::DELETE_ACLS);
    for acl in acls {
        let mut filter = body.new_element("Filters");
        filter.set("ResourceTypeFilter", TOPIC);
        filter.set("ResourceNameFilter", topic);
        filter.set("PatternTypeFilter", LITERAL);
        filter.set("PrincipalFilter", acl.principal.as_str());
        filter.set("HostFilter", EVERY_HOST);
        filter.set("Operation", acl.operation);
        filter.set("PermissionType", acl.permission);
        body.push("Filters", filter);
    }
    let answer = call(client, at, key::DELETE_ACLS, &body).await?;
    answer.structs("FilterResults").try_for_each(|result| judge(result, "remove access control lists"))
}

async fn call(client: &Client, at: &Address, api_key: i16, body: &Struct) -> Result<Struct, AclError> {
    let answer = client.call(at, api_key, i16::MAX, body).await;
    Ok(answer.map_err(|problem| anyhow!(problem))?)
}

fn judge(answer: &Struct, what: &'static str) -> Result<(), AclError> {
    match answer.i16("ErrorCode") {
        0 => Ok(()),
        SECURITY_DISABLED => Err(AclError::NoAuthorizer),
        CLUSTER_AUTHORIZATION_FAILED => Err(AclError::NotAllowed(what)),
        code => {
            let message = answer.opt_str("ErrorMessage").unwrap_or("no message");
            Err(AclError::Other(anyhow!("crossover cannot {what}: error {code}: {message}")))
        }
    }
}

/// Entries for some hosts only are taken for what they are: entries that apply to the topic.
fn read(acl: &Struct) -> Acl {
    let principal = match acl.str("Host") {
        EVERY_HOST => acl.str("Principal").to_owned(),
        host => format!("{} from {host}", acl.str("Principal")),
    };
    Acl { principal, operation: acl.i8("Operation"), permission: acl.i8("PermissionType") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_without_entries_stays_open_to_everybody_for_all_but_writing() {
        let principals = ["User:a".to_owned(), "User:b".to_owned()];
        let denials = [Acl::denies_writing("User:a"), Acl::denies_writing("User:b")];
        assert_eq!(fence(&principals, &[]), [&denials[..], &[Acl::allows_everything()]].concat());
        // Where there are entries, somebody has said who may do what.
        let present = [Acl { principal: "User:c".to_owned(), operation: WRITE, permission: ALLOW }];
        assert_eq!(fence(&principals, &present), denials);
        // What an operator has put there is not ours to remove.
        assert_eq!(fence(&principals, &denials[..1]), denials[1..]);
        assert_eq!(fence(&principals, &denials), []);
    }
}

//! Every table against the official message definitions inside the kafka-clients jar (DESIGN decision 8).
//!
//! Reads the definitions on its own, not through the generator: both sides become one line of text per field, and the
//! lines have to be the same.

use crossover_core::schema::{self, DefaultValue, Field, Mark, Message, Type, Versions};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use zip::ZipArchive;

const RELEASE: &str = "4.3.1";
const JAR_VARIABLE: &str = "CROSSOVER_KAFKA_CLIENTS_JAR";

/// Brokers listen for these, but only for each other: the state of share groups (KIP-932).
const INTERNAL: [i16; 5] = [83, 84, 85, 86, 87];

#[test]
fn tables_equal_the_official_definitions() {
    let definitions = official_definitions();
    for key in schema::keys() {
        let (request, response) = &definitions[key];
        compare(schema::request(*key).expect("a listed key has a request"), request);
        compare(schema::response(*key).expect("a listed key has a response"), response);
    }
}

#[test]
fn every_client_facing_api_has_tables() {
    for (key, (request, _)) in official_definitions() {
        let internal = INTERNAL.contains(&key);
        let has_table = schema::request(key).is_some() && schema::response(key).is_some();
        assert_eq!(has_table, !internal, "API {key}, {}", request["name"]);
    }
}

#[test]
fn entity_types_are_marked() {
    let mut marked = 0;
    for key in schema::keys() {
        let (request, response) = &official_definitions_once(*key);
        for (message, json) in [(schema::request(*key), request), (schema::response(*key), response)] {
            let mut expected = Vec::new();
            json_fields(json, &mut |path, field| {
                if let Some(entity) = field["entityType"].as_str() {
                    expected.push((path.to_owned(), entity.to_owned()));
                }
            });
            let marks = marks_of(message.expect("a table"));
            for (path, entity) in expected {
                assert_eq!(marks[&path], mark_of(&entity), "{path}");
                marked += 1;
            }
        }
    }
    assert!(marked > 150, "only {marked} fields with an entity type: are the definitions read at all?");
}

/// The definitions do not say which numbers are offsets and leader epochs. Their names do, with these exceptions: a lag,
/// and what belongs to the metadata log (DescribeQuorum) or to the tasks of a streams group.
#[test]
fn offsets_and_leader_epochs_are_marked() {
    let exempt = ["Lag", "DescribeQuorum", "StreamsGroup", "TaskOffsetIntervalMs"];
    let mut marked = 0;
    for message in schema::keys().iter().flat_map(|key| [schema::request(*key), schema::response(*key)]) {
        let message = message.expect("a table");
        each_field(message.name, message.fields, &mut |path, field| {
            let name = field.name;
            let expected = match field.ty {
                _ if exempt.iter().any(|word| path.contains(word)) => return,
                Type::Int64 if name.contains("Offset") || name.contains("Watermark") => Mark::Position,
                Type::Int32 if name.contains("LeaderEpoch") || name == "LastFetchedEpoch" => Mark::Epoch,
                Type::Int16 if name.contains("ProducerEpoch") => Mark::ProducerEpoch,
                Type::Uuid if name.starts_with("TopicId") => Mark::TopicId,
                Type::Records => Mark::Records,
                _ => return,
            };
            assert_eq!(field.mark, expected, "{path}");
            marked += 1;
        });
    }
    assert!(marked > 80, "only {marked}");
}

fn compare(table: &Message, json: &Json) {
    let mut ours = vec![head_line(table.name, table.versions, table.flexible)];
    table_lines(table.name, table.fields, &mut ours);
    let name = text(json, "name");
    let mut theirs = vec![head_line(
        name,
        versions(text(json, "validVersions")),
        versions(text(json, "flexibleVersions")),
    )];
    json_fields(json, &mut |path, field| theirs.push(json_line(path, field)));
    assert_eq!(ours, theirs, "{name}");
}

fn head_line(name: &str, valid: Versions, flexible: Versions) -> String {
    format!("{name} {valid:?} flexible {flexible:?}")
}

// The tables' side.

fn table_lines(path: &str, fields: &[Field], out: &mut Vec<String>) {
    for field in fields {
        let path = format!("{path}.{}", field.name);
        let (tag, tagged) = field.tag.map_or((None, none()), |(tag, versions)| (Some(tag), versions));
        out.push(line(
            &path,
            &type_name(field.ty),
            field.versions,
            field.nullable,
            tag,
            tagged,
            &default(field),
            field.ignorable,
        ));
        if let Some(inner) = inner_fields(field.ty) {
            table_lines(&path, inner, out);
        }
    }
}

fn marks_of(message: &Message) -> BTreeMap<String, Mark> {
    let mut out = BTreeMap::new();
    each_field(message.name, message.fields, &mut |path, field| {
        out.insert(path.to_owned(), field.mark);
    });
    out
}

fn each_field(path: &str, fields: &[Field], see: &mut impl FnMut(&str, &Field)) {
    for field in fields {
        let path = format!("{path}.{}", field.name);
        see(&path, field);
        each_field(&path, inner_fields(field.ty).unwrap_or_default(), see);
    }
}

fn inner_fields(ty: Type) -> Option<&'static [Field]> {
    match ty {
        Type::Struct(fields) => Some(fields),
        Type::Array(element) => inner_fields(*element),
        _ => None,
    }
}

fn type_name(ty: Type) -> String {
    match ty {
        Type::Array(element) => format!("[]{}", type_name(*element)),
        Type::Struct(_) => "struct".to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn default(field: &Field) -> String {
    match (field.default, field.ty) {
        (DefaultValue::Null, _) => "null".to_owned(),
        (DefaultValue::Int(number), _) => number.to_string(),
        (DefaultValue::True, _) => "true".to_owned(),
        (DefaultValue::Zero, Type::Bool) => "false".to_owned(),
        (DefaultValue::Zero, ty) if ty.int_range().is_some() => "0".to_owned(),
        (DefaultValue::Zero, _) => String::new(),
    }
}

// The definitions' side.

fn json_line(path: &str, field: &Json) -> String {
    let range = |name: &str| field[name].as_str().map_or(none(), versions);
    let tag = field["tag"].as_u64().map(|tag| tag as u32);
    let ty = text(field, "type");
    let scalar = ty.trim_start_matches("[]");
    let ty =
        if scalar.starts_with(char::is_uppercase) { ty.replace(scalar, "struct") } else { ty.to_owned() };
    let ignorable = field["ignorable"].as_bool().unwrap_or(false);
    line(
        path,
        &ty,
        range("versions"),
        range("nullableVersions"),
        tag,
        range("taggedVersions"),
        &json_default(field),
        ignorable,
    )
}

fn json_default(field: &Json) -> String {
    let ty = text(field, "type");
    let given = match &field["default"] {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    match given.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).expect("a number").to_string(),
        None if given.is_empty() && ty == "bool" => "false".to_owned(),
        None if given.is_empty() && (ty.starts_with("int") || ty.starts_with("uint")) => "0".to_owned(),
        None => given,
    }
}

/// All fields of a definition in order, with their paths; common structs are followed where they are used.
fn json_fields(json: &Json, see: &mut impl FnMut(&str, &Json)) {
    let no_structs = Vec::new();
    let common = json["commonStructs"].as_array().unwrap_or(&no_structs);
    walk_json(text(json, "name"), json["fields"].as_array().expect("fields"), common, see);
}

fn walk_json(path: &str, fields: &[Json], common: &[Json], see: &mut impl FnMut(&str, &Json)) {
    for field in fields {
        let path = format!("{path}.{}", text(field, "name"));
        see(&path, field);
        let struct_name = text(field, "type").trim_start_matches("[]");
        let shared = common.iter().find(|s| s["name"] == struct_name);
        if let Some(inner) =
            field["fields"].as_array().or_else(|| shared.and_then(|s| s["fields"].as_array()))
        {
            walk_json(&path, inner, common, see);
        }
    }
}

fn mark_of(entity: &str) -> Mark {
    match entity {
        "brokerId" => Mark::NodeId,
        "groupId" => Mark::GroupId,
        "producerId" => Mark::ProducerId,
        "topicName" => Mark::TopicName,
        "transactionalId" => Mark::TransactionalId,
        other => panic!("entity type {other} is new"),
    }
}

#[expect(clippy::too_many_arguments, reason = "one per column")]
fn line(
    path: &str,
    ty: &str,
    versions: Versions,
    nullable: Versions,
    tag: Option<u32>,
    tagged: Versions,
    default: &str,
    ignorable: bool,
) -> String {
    format!(
        "{path}: {ty} {versions:?} nullable {nullable:?} tag {tag:?} {tagged:?} = {default:?} ignorable {ignorable}"
    )
}

fn none() -> Versions {
    versions("none")
}

fn versions(text: &str) -> Versions {
    let number = |text: &str| text.parse().expect("a version");
    match (text, text.strip_suffix('+'), text.split_once('-')) {
        ("none", ..) => Versions { min: 0, max: -1 },
        (_, Some(min), _) => Versions { min: number(min), max: i16::MAX },
        (_, _, Some((min, max))) => Versions { min: number(min), max: number(max) },
        _ => Versions { min: number(text), max: number(text) },
    }
}

fn text<'j>(json: &'j Json, name: &str) -> &'j str {
    json[name].as_str().unwrap_or_else(|| panic!("no {name} in {json}"))
}

// The jar.

fn official_definitions_once(key: i16) -> (Json, Json) {
    static ALL: std::sync::OnceLock<BTreeMap<i16, (Json, Json)>> = std::sync::OnceLock::new();
    ALL.get_or_init(official_definitions)[&key].clone()
}

/// The definitions of request and response by API key, of every API that a broker listens for.
fn official_definitions() -> BTreeMap<i16, (Json, Json)> {
    let mut jar = open_jar();
    let names: Vec<String> = jar.file_names().map(str::to_owned).collect();
    let mut out = BTreeMap::new();
    for name in names.iter().filter(|n| n.starts_with("common/message/") && n.ends_with("Request.json")) {
        let request = read_definition(&mut jar, name);
        let for_brokers = request["listeners"].as_array().is_some_and(|l| l.iter().any(|l| l == "broker"));
        if for_brokers {
            let response = read_definition(&mut jar, &name.replace("Request.json", "Response.json"));
            let key = request["apiKey"].as_i64().expect("an API key") as i16;
            out.insert(key, (request, response));
        }
    }
    assert!(out.len() > 60, "the jar defines only {} APIs", out.len());
    out
}

fn open_jar() -> ZipArchive<File> {
    let path = std::env::var_os(JAR_VARIABLE).map(PathBuf::from).or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME")?);
        let folder = home.join(".m2/repository/org/apache/kafka/kafka-clients").join(RELEASE);
        Some(folder.join(format!("kafka-clients-{RELEASE}.jar")))
    });
    let path = path.unwrap_or_default();
    let file = File::open(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}. Get it with `mvn dependency:get -Dartifact=org.apache.kafka:kafka-clients:{RELEASE} \
             -Dtransitive=false`, or name a kafka-clients {RELEASE} jar in {JAR_VARIABLE}.",
            path.display()
        )
    });
    ZipArchive::new(file).expect("a jar")
}

fn read_definition(jar: &mut ZipArchive<File>, name: &str) -> Json {
    let mut text = String::new();
    jar.by_name(name).expect("it is listed").read_to_string(&mut text).expect("UTF-8");
    serde_json::from_str(&without_comments(&text)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Drops `// …` to the end of the line, outside of strings.
fn without_comments(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut end = line.len();
        let bytes = line.as_bytes();
        for at in 0..bytes.len() {
            quoted ^= bytes[at] == b'"';
            if !quoted && bytes[at..].starts_with(b"//") {
                end = at;
                break;
            }
        }
        out.push_str(&line[..end]);
        out.push('\n');
    }
    out
}

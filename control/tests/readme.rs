//! The README's tables of a Service's and an EndpointSlice's fields: every field of the API's types is in them, nothing else
//! is, and the tests that they name are there.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort, ServiceSpec, ServiceStatus};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};
use serde::de::{Deserialize, Deserializer, Visitor, value::Error};
use std::collections::BTreeSet;
use std::path::Path;

/// Takes nothing but the names of a struct's fields.
struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("no struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(serde::de::Error::custom("only its names are asked for"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The fields of a type of the API, but those whose own fields are listed.
fn fields<'de, T: Deserialize<'de>>(prefix: &str, listed: &[&str]) -> Vec<String> {
    let mut names: &'static [&'static str] = &[];
    assert!(T::deserialize(Names(&mut names)).is_err() && !names.is_empty());
    assert!(listed.iter().all(|field| names.contains(field)), "{prefix} has no longer all of {listed:?}");
    let own = names.iter().filter(|field| !listed.contains(field));
    own.map(|field| format!("{prefix}{field}")).collect()
}

/// The rows of the README's table under this title, first cell and last.
fn rows(title: &str) -> Vec<(String, String)> {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let mut lines = readme.lines().skip_while(|line| !line.starts_with(&format!("| `{title}` |"))).skip(2);
    let cells = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].to_owned(), cells[cells.len() - 1].to_owned())
    };
    let rows: Vec<_> = lines.by_ref().take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "there is no table of {title}");
    rows
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The fields that a table lists; `.name` stands for another field of the same struct as the one before it.
fn listed(rows: &[(String, String)]) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    // Labels and annotations are no fields.
    for (cell, _) in rows.iter().filter(|(cell, _)| cell.starts_with('`')) {
        let mut before = "";
        for name in quoted(cell) {
            match name.strip_prefix('.') {
                Some(name) => fields.insert(format!("{before}{name}")),
                None => {
                    before = &name[..name.rfind('.').map_or(0, |at| at + 1)];
                    fields.insert(name.to_owned())
                }
            };
        }
    }
    fields
}

fn check(title: &str, of_the_api: impl IntoIterator<Item = String>) {
    let rows = rows(title);
    assert_eq!(listed(&rows), of_the_api.into_iter().collect(), "fields that the table lists, and the API's");
    for (fields, tests) in &rows {
        let files: Vec<&str> = quoted(tests).collect();
        assert!(tests == "–" || !files.is_empty(), "{fields}: a test or a dash");
        files.iter().for_each(|file| assert!(root().join(file).is_file(), "{fields}: there is no {file}"));
    }
}

#[test]
fn every_field_of_a_service_has_its_row_and_its_test() {
    assert_eq!(fields::<Service>("", &["apiVersion", "kind", "metadata"]), ["spec", "status"]);
    let spec = fields::<ServiceSpec>("", &["ports"]);
    let status = fields::<ServiceStatus>("status.", &["loadBalancer"]);
    let ingress = fields::<LoadBalancerIngress>("status.loadBalancer.ingress[].", &[]);
    check("Service.spec", [spec, fields::<ServicePort>("ports[].", &[]), status, ingress].concat());
}

#[test]
fn every_field_of_an_endpoint_slice_has_its_row_and_its_test() {
    let slice = fields::<EndpointSlice>("", &["apiVersion", "kind", "metadata", "endpoints", "ports"]);
    let endpoint = fields::<Endpoint>("endpoints[].", &["hints"]);
    let hints = fields::<EndpointHints>("endpoints[].hints.", &[]);
    check("EndpointSlice", [slice, endpoint, hints, fields::<EndpointPort>("ports[].", &[])].concat());
}

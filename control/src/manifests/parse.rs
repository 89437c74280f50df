//! From the text of one manifest file to checked objects. A file is all or nothing: any error in it yields all
//! its errors and no object.

use super::error::{FileProblem, ManifestError, known_kind};
use crate::convert;
use crate::enis;
use crate::object::{Kind, Object};
use crate::{masquerade, pools, services};
use serde::de::DeserializeOwned;
use serde_norway::Value;
use std::collections::BTreeMap;

/// An object and where it stands in its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Number of the YAML document, from 1.
    pub document: usize,
    /// Line at which the document begins, from 1.
    pub line: usize,
    /// The object.
    pub object: Object,
}

/// What a file holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parsed {
    /// Its objects in order.
    pub objects: Vec<Placed>,
    /// How many objects of which other kinds it holds, which Fairway does not read.
    pub ignored: BTreeMap<String, usize>,
}

struct Document<'a> {
    number: usize,
    /// Lines before the text.
    skipped: usize,
    text: &'a str,
}

/// Parses and checks a file.
pub fn parse(file: &str, text: &str) -> Result<Parsed, Vec<ManifestError>> {
    let mut parsed = Parsed::default();
    let mut errors = Vec::new();
    for document in documents(text) {
        if let Err(error) = parse_document(file, &document, &mut parsed) {
            errors.extend(error);
        }
    }
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

/// Splits at `---` lines, so that an error in one document does not hide those in others. Documents that
/// hold nothing but space and comments do not count.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut out = Vec::new();
    let mut push = |text, skipped| {
        if first_content(text).is_some() {
            out.push(Document { number: out.len() + 1, skipped, text });
        }
    };
    let (mut start, mut skipped, mut offset) = (0, 0, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            push(&text[start..offset], skipped);
            // What follows the marker on its line belongs to the document.
            (start, skipped) = (offset + 3, i);
        }
        offset += line.len();
    }
    push(&text[start..], skipped);
    out
}

/// Index of the first line that is neither blank nor a comment.
fn first_content(text: &str) -> Option<usize> {
    text.lines().position(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
}

fn parse_document(file: &str, document: &Document, out: &mut Parsed) -> Result<(), Vec<ManifestError>> {
    let line = document.skipped + 1 + first_content(document.text).unwrap_or(0);
    let error = |line, object, problem| ManifestError {
        file: file.to_owned(),
        document: document.number,
        line: Some(line),
        object,
        problem,
    };
    // Blank lines instead of what was before, so that the parser counts lines as the file does.
    let text = "\n".repeat(document.skipped) + document.text;
    let value: Value = serde_norway::from_str(&text).map_err(|e| {
        let line = e.location().map_or(line, |l| l.line());
        vec![error(line, None, FileProblem::Yaml(e.to_string()))]
    })?;
    let mut errors = Vec::new();
    match list_items(&value) {
        None => {
            let typed = parse_object(&value, &Source::Text(&text), out);
            errors.extend(
                typed.err().map(|(at, problem)| error(at.unwrap_or(line), describe(&value), problem)),
            );
        }
        Some(items) => {
            for item in items {
                let typed = parse_object(&item, &Source::Value, out);
                errors.extend(typed.err().map(|(_, problem)| error(line, describe(&item), problem)));
            }
        }
    }
    for placed in out.objects.iter_mut().filter(|p| p.document == 0) {
        (placed.document, placed.line) = (document.number, line);
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The items of a `kind: List`, or of a `PodList` and its like, whose items carry no kind of their own.
fn list_items(value: &Value) -> Option<Vec<Value>> {
    let kind = value.get("kind")?.as_str()?.strip_suffix("List")?;
    let items = value.get("items")?.as_sequence()?;
    let complete = |item: &Value| {
        let mut item = item.clone();
        if let (false, Some(map)) = (kind.is_empty(), item.as_mapping_mut()) {
            for (field, text) in
                [("kind", Some(kind)), ("apiVersion", value.get("apiVersion").and_then(Value::as_str))]
            {
                if let (false, Some(text)) = (map.contains_key(field), text) {
                    map.insert(field.into(), text.into());
                }
            }
        }
        item
    };
    Some(items.iter().map(complete).collect())
}

/// Kind, namespace and name as far as they can be read.
fn describe(value: &Value) -> Option<String> {
    let kind = value.get("kind")?.as_str()?;
    let meta = value.get("metadata");
    let text = |field| meta.and_then(|m| m.get(field)).and_then(Value::as_str);
    Some(match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) if matches!(kind, "Node" | "Namespace" | "IPPool") => format!("{kind} {name}"),
        (None, Some(name)) => format!("{kind} default/{name}"),
        (_, None) => kind.to_owned(),
    })
}

/// Where typed objects are read from: the text, whose errors know their line, or an item of a list.
enum Source<'a> {
    Text(&'a str),
    Value,
}

type Located = (Option<usize>, FileProblem);

fn parse_object(value: &Value, source: &Source, out: &mut Parsed) -> Result<(), Located> {
    let missing = |what| (None, FileProblem::NotAnObject(what));
    let kind_name = value.get("kind").and_then(Value::as_str).ok_or(missing("kind"))?;
    let version = value.get("apiVersion").and_then(Value::as_str).ok_or(missing("apiVersion"))?;
    let name = value.get("metadata").and_then(|meta| meta.get("name")).and_then(Value::as_str);
    let Some((kind, expected)) = known_kind(kind_name, version, name) else {
        *out.ignored.entry(kind_name.to_owned()).or_default() += 1;
        return Ok(());
    };
    if !expected.contains(&version) {
        // Another group's kind of the same name (a Knative Service, say) is not ours to judge.
        let group = |v: &str| v.rsplit_once('/').map(|(group, _)| group.to_owned());
        if !expected.iter().any(|expected| group(version) == group(expected)) {
            *out.ignored.entry(format!("{kind_name} ({version})")).or_default() += 1;
            return Ok(());
        }
        return Err((None, FileProblem::Version { found: version.to_owned(), expected: expected[0] }));
    }
    let field = |e| (None, FileProblem::Field(e));
    let object = match kind {
        Kind::Node => convert::node(&typed(value, source)?).map_err(field)?,
        Kind::Namespace => convert::namespace(&typed(value, source)?).map_err(field)?,
        Kind::Pod => convert::pod(&typed(value, source)?).map_err(field)?,
        Kind::Service => services::service(&typed(value, source)?).map_err(field)?,
        Kind::EndpointSlice => convert::endpoint_slice(&typed(value, source)?).map_err(field)?,
        Kind::IpPool => pools::ip_pool(&typed(value, source)?).map_err(field)?,
        Kind::FlannelConfig => pools::flannel(&typed(value, source)?).map_err(field)?,
        Kind::MasqueradeConfig => masquerade::config(&typed(value, source)?).map_err(field)?,
        Kind::NodeEnis => enis::node(&typed(value, source)?).map_err(field)?,
    };
    out.objects.push(Placed { document: 0, line: 0, object });
    Ok(())
}

fn typed<T: DeserializeOwned>(value: &Value, source: &Source) -> Result<T, Located> {
    let result = match source {
        Source::Text(text) => serde_norway::from_str(text),
        Source::Value => T::deserialize(value),
    };
    result.map_err(|e| (e.location().map(|l| l.line()), FileProblem::Shape(e.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDR: 10.244.0.0/24}\nstatus:\n  \
        addresses: [{type: InternalIP, address: 192.0.2.1}]\n";

    fn keys(text: &str) -> Vec<String> {
        parse("f.yaml", text).unwrap().objects.iter().map(|p| p.object.key().to_string()).collect()
    }

    #[test]
    fn documents_lists_and_other_kinds_are_read_from_one_file() {
        let text = format!(
            "# a comment\n---\n{NODE}---\n\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
             metadata: {{name: ns}}\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: c}}}}\n--- # trailing\n\
             apiVersion: v1\nkind: PodList\nitems:\n- metadata: {{name: p}}\n"
        );
        assert_eq!(keys(&text), ["Node a", "Namespace ns", "Pod default/p"]);
        let parsed = parse("f.yaml", &text).unwrap();
        assert_eq!(parsed.ignored, BTreeMap::from([("ConfigMap".to_owned(), 1)]));
        let places: Vec<_> = parsed.objects.iter().map(|p| (p.document, p.line)).collect();
        assert_eq!(places, [(1, 3), (2, 12), (3, 20)]);
    }

    #[test]
    fn every_error_of_a_file_is_told_with_its_document_line_object_and_field() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1}\n---\n\
            apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: x}\nspec:\n  ports:\n  - port: many\n---\n\
            a: b: c\n---\nkind: Pod\n";
        let errors: Vec<_> = parse("s.yaml", text).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 4, "{errors:#?}");
        assert_eq!(
            errors[0],
            "s.yaml:1: document 1: Service default/a: spec.ports: a service needs at least one port; add one, or set \
             clusterIP: None"
        );
        assert!(
            errors[1].starts_with("s.yaml:11: document 2: Service x/b: does not fit its kind: "),
            "{}",
            errors[1]
        );
        assert!(errors[1].contains("spec.ports[0].port"), "{}", errors[1]);
        assert!(errors[2].starts_with("s.yaml:13: document 3: not valid YAML: "), "{}", errors[2]);
        assert!(
            errors[3].starts_with("s.yaml:15: document 4: Pod: not a Kubernetes object: apiVersion"),
            "{}",
            errors[3]
        );
    }

    #[test]
    fn a_kind_of_the_same_name_in_another_group_is_not_ours() {
        let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n";
        assert_eq!(keys(text), Vec::<String>::new());
        let old = "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n";
        let error = parse("f.yaml", old).unwrap_err()[0].to_string();
        assert!(error.contains("use discovery.k8s.io/v1"), "{error}");
    }
}

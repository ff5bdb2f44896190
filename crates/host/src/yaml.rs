//! YAML as a tree in which every scalar is text: whether a text is a number depends on the field. The parser reports
//! events; here they become a tree within bounds, because an alias can stand for a tree, and a tree of aliases for very
//! many.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

/// The deepest nesting.
const DEPTH_LIMIT: usize = 32;
/// The most values, those behind aliases included. A text counts once more for each [`TEXT_UNIT`] bytes.
const VALUES_MAX: usize = 500_000;
const TEXT_UNIT: usize = 64;

/// Parses one document. Empty and `null` scalars are nothing; members that are nothing are left out.
///
/// # Errors
/// What is wrong, and where.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut tree = Tree::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| error.to_string())?;
        tree.take(event).map_err(|problem| format!("line {}: {problem}", span.start.line()))?;
    }
    tree.document.ok_or_else(|| "it is empty".to_owned())
}

#[derive(Default)]
struct Tree {
    /// The lists and maps that are not complete, outermost first, each with its anchor.
    open: Vec<(Node, usize)>,
    anchors: HashMap<usize, Value>,
    values: usize,
    document: Option<Value>,
}

enum Node {
    List(Vec<Value>),
    /// A map, and the key whose value comes next.
    Map(Map<String, Value>, Option<String>),
}

impl Tree {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref())?;
                let is_nothing = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                let value = if is_nothing { Value::Null } else { Value::String(text.into_owned()) };
                self.put(value, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.begin(Node::List(Vec::new()), anchor, tag.as_deref()),
            Event::MappingStart(anchor, tag) => {
                self.begin(Node::Map(Map::new(), None), anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).ok_or("an alias inside of its own anchor")?;
                let budget = VALUES_MAX.saturating_sub(self.values);
                self.values += size(value, budget).ok_or("it is too large with its aliases")?;
                let value = value.clone();
                self.put(value, 0)
            }
            Event::DocumentStart(_) if self.document.is_some() => {
                Err("there is a second document".to_owned())
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, anchor: usize, tag: Option<&Tag>) -> Result<(), String> {
        check_tag(tag)?;
        if self.open.len() == DEPTH_LIMIT {
            return Err(format!("it is nested more than {DEPTH_LIMIT} deep"));
        }
        self.open.push((node, anchor));
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let (node, anchor) = self.open.pop().ok_or("an end without a beginning")?;
        let value = match node {
            Node::List(list) => Value::Array(list),
            Node::Map(map, _) => Value::Object(map),
        };
        self.put(value, anchor)
    }

    fn put(&mut self, value: Value, anchor: usize) -> Result<(), String> {
        self.values += match &value {
            Value::String(text) => weight(text),
            _ => 1,
        };
        if self.values > VALUES_MAX {
            return Err(format!("it has more than {VALUES_MAX} values"));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.document = Some(value),
            Some((Node::List(list), _)) => list.push(value),
            Some((Node::Map(map, key), _)) => match key.take() {
                None => *key = Some(key_of(value, map)?),
                Some(_) if value.is_null() => {}
                Some(name) => drop(map.insert(name, value)),
            },
        }
        Ok(())
    }
}

/// A key of a map, which is not in it yet.
fn key_of(value: Value, map: &Map<String, Value>) -> Result<String, String> {
    match value {
        Value::String(key) if map.contains_key(&key) => Err(format!("the key {key:?} occurs twice")),
        Value::String(key) => Ok(key),
        _ => Err("a key is not a text".to_owned()),
    }
}

/// YAML's own tags add nothing: the type of a value depends on the field.
fn check_tag(tag: Option<&Tag>) -> Result<(), String> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => Err(format!("the tag {tag} is not known")),
        _ => Ok(()),
    }
}

fn weight(text: &str) -> usize {
    1 + text.len() / TEXT_UNIT
}

/// How many values there are in a tree; `None` if there are more than the budget.
fn size(value: &Value, budget: usize) -> Option<usize> {
    let below = |size: usize, value: &Value| Some(size + self::size(value, budget.checked_sub(size)?)?);
    let size = match value {
        Value::Array(list) => list.iter().try_fold(1, below),
        Value::Object(map) => map.iter().try_fold(1, |size, (key, value)| below(size + weight(key), value)),
        Value::String(text) => Some(weight(text)),
        _ => Some(1),
    };
    size.filter(|size| *size <= budget)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_becomes_a_tree_of_texts() {
        let text = "---\n# of a vendor\nkind: vendor.com/gpu\nempty:\nnull: ~\nlist:\n- name: \"0\"\n  mode: 0660\n- {a: [b, 'null', null]}\ntext: |\n  two\n  lines\n";
        let tree = json!({
            "kind": "vendor.com/gpu",
            "list": [{"name": "0", "mode": "0660"}, {"a": ["b", "null", null]}],
            "text": "two\nlines\n",
        });
        let parsed = parse(&text.replace("null: ~\n", "\"null\": ~\n")).unwrap();
        assert_eq!(parsed, tree);
        assert_eq!(parse(r#"{"json": ["is", "yaml", 1, true]}"#).unwrap()["json"][2], "1");
    }

    #[test]
    fn an_alias_is_what_it_stands_for() {
        let tree = parse("base: &base {a: b}\nfirst: *base\nsecond: [*base, *base]\n").unwrap();
        assert_eq!(tree["second"], json!([{"a": "b"}, {"a": "b"}]));
    }

    #[test]
    fn what_is_no_single_tree_is_refused() {
        let deep = format!("{}{}", "[".repeat(DEPTH_LIMIT + 1), "]".repeat(DEPTH_LIMIT + 1));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 1000].join(", "));
        let rows = [
            (long.as_str(), "too large"),
            ("", "empty"),
            ("a: 1\na: 2\n", "line 2: the key \"a\" occurs twice"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("? [a]\n: b\n", "key is not a text"),
            ("a: !mine b\n", "tag"),
            ("a: &x [*x]\n", "alias"),
            ("a: *unknown\n", "unknown"),
            ("a: [b\n", ""),
            (&deep, "nested"),
            (&bomb, "too large"),
        ];
        for (text, words) in rows {
            let fault = parse(text).unwrap_err();
            assert!(fault.contains(words), "{text:?}: {fault}");
        }
    }
}

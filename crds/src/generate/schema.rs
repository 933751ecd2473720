//! From the schema that `schemars` makes to the one that the API server should have.
//!
//! - No field is nullable: an absent field is absent, and `has()` in a rule means what it says.
//! - Integer formats are those that the API server knows.
//! - The default of an object is spelled out: the API server checks a default against the rules before it fills in the fields'.
//! - A status has no defaults: what nobody found out is absent, not 0.
//! - What Pods define (affinity, tolerations, spread) keeps its structure and loses its prose: seven copies of it would make
//!   the CRD too large for a client-side `kubectl apply`.

use serde_json::{Map, Value, json};

/// Fields whose inner descriptions are those of the Pod and are left out.
const POD_FIELDS: [&str; 3] = ["affinity", "tolerations", "topologySpreadConstraints"];

/// What Kubernetes takes for a quantity, a count included.
const QUANTITY_RULE: &str = "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))";

/// The CRD with its schema finished.
pub(super) fn finished(mut crd: Value) -> Value {
    let kind = text(&crd, "/spec/names/kind").to_owned();
    let root = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").expect("a derived CRD has a schema");
    finish(root, false);
    remove_defaults(&mut root["properties"]["status"]);
    if kind == "ChatCluster" {
        // A ChatCluster without a spec is one with all defaults.
        root["properties"]["spec"]["default"] = json!(crate::ChatClusterSpec::default());
        root.as_object_mut().expect("a schema is an object").remove("required");
    }
    crd
}

/// The string at a JSON pointer.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).expect("the CRD has this text")
}

fn finish(schema: &mut Value, bare: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["nullable", "title"] {
        object.remove(key);
    }
    if bare {
        object.remove("description");
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    finish_integer(object);
    if object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        object.remove("description");
        object.insert("anyOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
        let message = "must be a quantity such as 2, 500m or 1Gi";
        object.insert("x-kubernetes-validations".to_owned(), json!([{"rule": QUANTITY_RULE, "message": message}]));
        // A bound on the length lets the API server bound the cost of rules about it.
        object.insert("maxLength".to_owned(), json!(32));
        return;
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for (name, property) in properties {
            let pod_field = POD_FIELDS.contains(&name.as_str());
            let description = property.get("description").cloned();
            finish(property, bare || pod_field);
            if let (false, Some(description)) = (bare, description) {
                property["description"] = unwrapped(&description);
            }
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            finish(inner, bare);
        }
    }
}

fn remove_defaults(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("default");
    for property in object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        remove_defaults(property.1);
    }
    if let Some(items) = object.get_mut("items") {
        remove_defaults(items);
    }
}

/// Unsigned formats become the signed ones that hold the values; the bounds stay.
fn finish_integer(object: &mut Map<String, Value>) {
    let format = match object.get("format").and_then(Value::as_str) {
        Some("uint8" | "uint16" | "int8" | "int16") => "int32",
        Some("uint32" | "uint64") => "int64",
        _ => return,
    };
    object.insert("format".to_owned(), json!(format));
    if object.get("maximum").and_then(Value::as_u64) == Some(u64::from(u16::MAX)) && format == "int32" {
        return;
    }
    // `schemars` writes bounds as floats where it can; whole numbers read better.
    for bound in ["minimum", "maximum"] {
        if let Some(number) = object.get(bound).and_then(Value::as_f64) {
            object.insert(bound.to_owned(), json!(number as i64));
        }
    }
}

/// Doc comments break lines where the source does; readers' tools break them anew.
fn unwrapped(description: &Value) -> Value {
    let text = description.as_str().unwrap_or_default();
    let paragraphs: Vec<_> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
    Value::String(paragraphs.join("\n\n"))
}

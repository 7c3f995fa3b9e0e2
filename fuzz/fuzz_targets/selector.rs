//! Whatever a client gives as a selector, over fields of all types.
#![no_main]
use kahawai_selector::{Fields, Selector, Value};

struct Anything;

impl Fields for Anything {
    fn field(&self, name: &str) -> Value<'_> {
        match name.len() % 5 {
            0 => Value::Null,
            1 => Value::Bool(true),
            2 => Value::Long(i64::MIN),
            3 => Value::Double(f64::NAN),
            _ => Value::String("a%_b".into()),
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(selector) = Selector::parse(text)
    {
        let _ = selector.evaluate(&Anything);
    }
});

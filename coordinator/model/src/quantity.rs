//! Quantities as Kubernetes writes them: `500m` of a CPU, `4Gi` of memory.
//!
//! The forms are those of Kubernetes' "resource units", of which only those make sense here that a machine can have:
//! no negative ones, no exponents, and no thousandths of a byte.

/// Suffixes of bytes with their factors, binary before decimal: of two texts that are equally short the first is written.
const BYTE_SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];
/// Most digits of a quantity: more than the largest number of bytes has, few enough that no product overflows.
const DIGITS_MAX: usize = 20;
/// Thousandths of a CPU.
const MILLIS: u64 = 1_000;

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not begin with a number.
    #[error("`{text}` is no quantity: write {example}")]
    NoNumber {
        /// The text.
        text: String,
        /// What would be one.
        example: &'static str,
    },
    /// What follows the number is not known.
    #[error("`{text}`: `{suffix}` is no unit here; write {example}")]
    Suffix {
        /// The text.
        text: String,
        /// What follows the number.
        suffix: String,
        /// What would be one.
        example: &'static str,
    },
    /// It is more than any machine has.
    #[error("`{text}` is too large")]
    TooLarge {
        /// The text.
        text: String,
    },
}

const CPU_EXAMPLE: &str = "cores (2 or 0.5) or thousandths of one (500m)";
const BYTES_EXAMPLE: &str = "bytes with Ki, Mi, Gi, Ti or k, M, G, T, for example 4Gi or 500M";

/// Reads an amount of CPU, in thousandths of a core. A part of a thousandth counts as a whole one, as in Kubernetes.
///
/// # Errors
/// [`QuantityError`].
pub fn parse_cpu_millis(text: &str) -> Result<u32, QuantityError> {
    let (number, suffix) = split(text, CPU_EXAMPLE)?;
    let factor = match suffix {
        "" => MILLIS,
        "m" => 1,
        _ => {
            let suffix = suffix.to_owned();
            return Err(QuantityError::Suffix { text: text.to_owned(), suffix, example: CPU_EXAMPLE });
        }
    };
    let millis = times(number, factor).and_then(|millis| u32::try_from(millis).ok());
    millis.ok_or_else(|| QuantityError::TooLarge { text: text.to_owned() })
}

/// Reads a number of bytes. A part of a byte counts as a whole one, as in Kubernetes.
///
/// # Errors
/// [`QuantityError`]; also for `500m`, which Kubernetes takes for half a byte and nobody means.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let (number, suffix) = split(text, BYTES_EXAMPLE)?;
    let known = BYTE_SUFFIXES.iter().find(|(known, _)| *known == suffix || (suffix == "K" && *known == "k"));
    let factor = match (suffix, known) {
        ("", _) => 1,
        (_, Some((_, factor))) => *factor,
        (_, None) => {
            let suffix = suffix.to_owned();
            return Err(QuantityError::Suffix { text: text.to_owned(), suffix, example: BYTES_EXAMPLE });
        }
    };
    let bytes = times(number, factor).and_then(|bytes| u64::try_from(bytes).ok());
    bytes.ok_or_else(|| QuantityError::TooLarge { text: text.to_owned() })
}

/// Writes an amount of CPU so that [`parse_cpu_millis`] reads the same again.
#[must_use]
pub fn cpu_text(millis: u32) -> String {
    match u64::from(millis) {
        whole if whole.is_multiple_of(MILLIS) => (whole / MILLIS).to_string(),
        part => format!("{part}m"),
    }
}

/// Writes a number of bytes as short as can be, so that [`parse_bytes`] reads the same again.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    let whole = BYTE_SUFFIXES.iter().filter(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    let texts = whole.map(|(suffix, factor)| format!("{}{suffix}", bytes / factor));
    texts.chain([bytes.to_string()]).min_by_key(String::len).unwrap_or_default()
}

/// A number as its digits and how many of them stand behind the point.
type Number = (u128, u32);

fn split<'t>(text: &'t str, example: &'static str) -> Result<(Number, &'t str), QuantityError> {
    let none = || QuantityError::NoNumber { text: text.to_owned(), example };
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return Err(none());
    }
    if whole.len() + part.len() > DIGITS_MAX {
        return Err(QuantityError::TooLarge { text: text.to_owned() });
    }
    let digits = format!("{whole}{part}").parse().map_err(|_| none())?;
    Ok(((digits, u32::try_from(part.len()).map_err(|_| none())?), suffix))
}

fn times((digits, behind_point): Number, factor: u64) -> Option<u128> {
    Some(digits.checked_mul(u128::from(factor))?.div_ceil(10_u128.checked_pow(behind_point)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_as_kubernetes_does() {
        for (text, millis) in
            [("2", 2_000), ("500m", 500), ("0.5", 500), (".25", 250), ("1.0001", 1_001), ("0", 0)]
        {
            assert_eq!(parse_cpu_millis(text), Ok(millis), "{text}");
        }
        for (text, why) in [
            ("", "`` is no quantity: write cores (2 or 0.5) or thousandths of one (500m)"),
            ("-1", "`-1` is no quantity: write cores (2 or 0.5) or thousandths of one (500m)"),
            ("1.2.3", "`1.2.3` is no quantity: write cores (2 or 0.5) or thousandths of one (500m)"),
            (
                "2 cores",
                "`2 cores`: ` cores` is no unit here; write cores (2 or 0.5) or thousandths of one (500m)",
            ),
            ("9999999999", "`9999999999` is too large"),
        ] {
            assert_eq!(
                parse_cpu_millis(text).map_err(|error| error.to_string()),
                Err(why.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn bytes_are_read_as_kubernetes_does() {
        for (text, bytes) in [
            ("4Gi", 4 << 30),
            ("1.5Gi", 3 << 29),
            ("20G", 20_000_000_000),
            ("512Mi", 512 << 20),
            ("1k", 1_000),
            ("1K", 1_000),
            ("2Ti", 2 << 40),
            ("128974848", 128_974_848),
            ("0.1", 1),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "Gi", "4gi", "4 Gi", "500m", "1e3", "4GiB", "-4Gi"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert!(matches!(parse_bytes("99999999Ti"), Err(QuantityError::TooLarge { .. })));
        assert!(matches!(parse_bytes(&"9".repeat(40)), Err(QuantityError::TooLarge { .. })));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for bytes in [0, 1, 1_000, 1_024, 1_500_000_000, 20 << 30, 3 << 29, u64::MAX] {
            assert_eq!(parse_bytes(&bytes_text(bytes)), Ok(bytes), "{}", bytes_text(bytes));
        }
        for millis in [0, 1, 500, 1_000, 2_500, 64_000, u32::MAX] {
            assert_eq!(parse_cpu_millis(&cpu_text(millis)), Ok(millis), "{}", cpu_text(millis));
        }
        for (bytes, text) in
            [(20 << 30, "20Gi"), (20_000_000_000, "20G"), (3 << 29, "1536Mi"), (7, "7"), (0, "0")]
        {
            assert_eq!(bytes_text(bytes), text);
        }
        assert_eq!((cpu_text(2_000), cpu_text(500)), ("2".to_owned(), "500m".to_owned()));
    }
}

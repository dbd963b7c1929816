//! Kubernetes quantities: `100m`, `1.5`, `64Mi`, `2e3`.
//!
//! Owns: parsing of `resource.Quantity` texts to exact integers, and their canonical form. Grammar as in apimachinery's `quantity.go`: a signed
//! decimal number, then a binary suffix (Ki…Ei), a decimal suffix (n u m k M G T P E) or an exponent.

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', got {0:?}"
)]
pub struct QuantityError(pub String);

/// More digits than any quantity has; fewer keep every product below within `i128`.
const MAX_DIGITS: usize = 30;

/// Parses a quantity into thousandths, rounded up (away from zero), as Kubernetes rounds.
///
/// # Errors
/// When the text is no quantity, or does not fit.
pub fn parse_milli(text: &str) -> Result<i128, QuantityError> {
    parse_scaled(text, 3)
}

/// Parses a quantity into billionths, rounded up.
///
/// # Errors
/// When the text is no quantity, or does not fit.
pub fn parse_nano(text: &str) -> Result<i128, QuantityError> {
    parse_scaled(text, 9)
}

/// Parses a quantity into units of `10^-decimals`, rounded up.
fn parse_scaled(text: &str, decimals: i32) -> Result<i128, QuantityError> {
    let bad = || QuantityError(text.to_owned());
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let count = whole.len() + fraction.len();
    if count == 0 || count > MAX_DIGITS || fraction.contains('.') {
        return Err(bad());
    }
    let digits: i128 = format!("0{whole}{fraction}").parse().map_err(|_| bad())?;
    // The value is digits * scale * 10^power.
    let (scale, power): (i128, i32) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent if exponent.starts_with(['e', 'E']) => {
            let power: i32 = exponent[1..].parse().map_err(|_| bad())?;
            if power.abs() > 30 {
                return Err(bad());
            }
            (1, power)
        }
        _ => return Err(bad()),
    };
    let power = power + decimals - i32::try_from(fraction.len()).map_err(|_| bad())?;
    let scaled = digits.checked_mul(scale).ok_or_else(bad)?;
    let ten = |n: i32| 10_i128.checked_pow(n.unsigned_abs());
    let value = if power >= 0 {
        ten(power).and_then(|t| scaled.checked_mul(t)).ok_or_else(bad)?
    } else {
        // A divisor beyond i128 leaves less than one thousandth, which rounds up to one.
        ten(power).map_or(i128::from(scaled > 0), |t| scaled / t + i128::from(scaled % t != 0))
    };
    Ok(if negative { -value } else { value })
}

/// The form in which Kubernetes writes a quantity: the largest suffix of its family that needs no fraction (`1000m` →
/// `1`, `0.5` → `500m`, `1024Mi` → `1Gi`). What is no quantity, or too large to compute with, comes back as it is.
pub fn canonical(text: &str) -> String {
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const NANO: i128 = 1_000_000_000;
    let Ok(nano) = parse_scaled(text, 9) else { return text.to_owned() };
    if nano == 0 {
        return "0".to_owned();
    }
    // As Kubernetes does, small or broken binary amounts are written in decimals.
    if text.ends_with('i') && nano % NANO == 0 && nano.abs() >= 1024 * NANO {
        let (mut value, mut step) = (nano / NANO, 0);
        while value % 1024 == 0 && step + 1 < BINARY.len() {
            value /= 1024;
            step += 1;
        }
        // Without a suffix it would be read as decimals the next time, so it is written as such at once; Kubernetes gets
        // there in two steps.
        if step > 0 {
            return format!("{value}{}", BINARY[step]);
        }
    }
    let (mut value, mut step) = (nano, 0);
    while value % 1000 == 0 && step + 1 < DECIMAL.len() {
        value /= 1000;
        step += 1;
    }
    if value.unsigned_abs().ilog10() as usize >= MAX_DIGITS {
        return text.to_owned();
    }
    let exponent = text.find(['e', 'E']).is_some_and(|at| at + 1 < text.len());
    match DECIMAL[step] {
        suffix if !exponent || suffix.is_empty() => format!("{value}{suffix}"),
        _ => format!("{value}e{}", 3 * i32::try_from(step).unwrap_or_default() - 9),
    }
}

/// As [`canonical`], of an amount of a resource: of these there is nothing below a thousandth, which is rounded up to.
pub fn canonical_amount(text: &str) -> String {
    match (parse_nano(text), parse_milli(text)) {
        (Ok(nano), Ok(milli)) if nano % 1_000_000 != 0 => canonical(&format!("{milli}m")),
        _ => canonical(text),
    }
}

/// Parses a quantity into whole units (bytes, pieces), rounded up; saturates at `i64`.
///
/// # Errors
/// When the text is no quantity.
pub fn parse_units(text: &str) -> Result<i64, QuantityError> {
    let milli = parse_milli(text)?;
    let units = milli / 1000 + if milli % 1000 == 0 { 0 } else { milli.signum() };
    Ok(i64::try_from(units).unwrap_or(if units > 0 { i64::MAX } else { i64::MIN }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_resources_are_whole_thousandths() {
        for (text, amount) in [
            ("100.5m", "101m"),
            ("1n", "1m"),
            ("999.1m", "1"),
            ("100m", "100m"),
            ("0.5Ki", "512"),
            ("x", "x"),
        ] {
            assert_eq!(canonical_amount(text), amount, "{text}");
        }
    }

    #[test]
    fn what_would_need_more_digits_than_can_be_read_stays_as_it_is() {
        let long = "1111111111111111111111111111.5";
        assert_eq!(canonical(long), long);
    }

    #[test]
    fn quantities_parse_exactly_and_round_up() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1_000),
            ("100m", 100),
            ("1.5", 1_500),
            (".5", 500),
            ("1n", 1),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("2e3", 2_000_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("-1", -1_000),
            ("0.0005", 1),
        ] {
            assert_eq!(parse_milli(text), Ok(milli), "{text}");
        }
        assert_eq!(parse_units("1500m"), Ok(2));
        assert_eq!(parse_units("9Ei"), Ok(i64::MAX));
    }

    #[test]
    fn the_canonical_form_is_kubernetes() {
        for (text, canonical_text) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1.5Ki", "1536"),
            ("44444437.5Ki", "45511104k"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("2e3", "2e3"),
            ("2000e0", "2e3"),
            ("1E", "1E"),
            ("-1000m", "-1"),
            ("0.0", "0"),
            ("1n", "1n"),
            ("abc", "abc"),
        ] {
            assert_eq!(canonical(text), canonical_text, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_the_canonical_form_says_the_same(
            text in "[+-]?[0-9]{0,12}(\\.[0-9]{0,6})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|e3|e-3)?|.{0,12}"
        ) {
            let once = canonical(&text);
            proptest::prop_assert_eq!(canonical(&once), once.clone());
            if let Ok(value) = parse_scaled(&text, 9) {
                proptest::prop_assert_eq!(parse_scaled(&once, 9), Ok(value));
            }
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "m", "1.2.3", "1mi", "1e", "e3", "1 ", "0x10", "1e99", "--1", "1Kii", "１"] {
            assert!(parse_milli(text).is_err(), "{text}");
        }
    }
}

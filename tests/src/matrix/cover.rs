//! Few rows of a product of factors that have every pair of values, or every value. Greedy, and the same each time.

use std::collections::BTreeSet;

/// A value: its factor and its number there.
type Value = (usize, usize);
/// One value of each factor.
type Row = Vec<usize>;
type Pairs = BTreeSet<(Value, Value)>;

/// All rows, in order.
pub(super) fn product(sizes: &[usize]) -> Vec<Row> {
    sizes.iter().fold(vec![Vec::new()], |rows, size| {
        let longer = |row: Vec<usize>| (0..*size).map(move |value| [&row[..], &[value]].concat());
        rows.into_iter().flat_map(longer).collect()
    })
}

/// Rows in which every two values of two factors meet.
pub(super) fn pairs(sizes: &[usize]) -> Vec<Row> {
    choose(sizes, &|row| {
        let values = values_of(row);
        let with = |(at, one): (usize, &Value)| -> Vec<(Value, Value)> {
            values[at + 1..].iter().map(|other| (*one, *other)).collect()
        };
        values.iter().enumerate().flat_map(with).collect()
    })
}

/// Rows that have every value.
pub(super) fn values(sizes: &[usize]) -> Vec<Row> {
    choose(sizes, &|row| values_of(row).into_iter().map(|value| (value, value)).collect())
}

fn values_of(row: &[usize]) -> Vec<Value> {
    row.iter().copied().enumerate().collect()
}

/// Takes the row that has most of what is missing, of equals the first, until nothing is. That depends on which row is the
/// first of all, so twelve may be it in turn, and the fewest rows win.
fn choose(sizes: &[usize], has: &dyn Fn(&[usize]) -> Pairs) -> Vec<Row> {
    let mut all: Vec<_> = product(sizes).into_iter().map(|row| (has(&row), row)).collect();
    let mut best: Option<Vec<Row>> = None;
    for _ in 0..12 {
        all.rotate_left(sizes.iter().product::<usize>() / 12);
        let chosen = greedy(&all);
        if best.as_ref().is_none_or(|best| chosen.len() < best.len()) {
            best = Some(chosen);
        }
    }
    best.unwrap_or_default()
}

fn greedy(all: &[(Pairs, Row)]) -> Vec<Row> {
    let mut missing: BTreeSet<_> = all.iter().flat_map(|(has, _)| has).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let new = |has: &BTreeSet<_>| has.iter().filter(|pair| missing.contains(pair)).count();
        // `max_by_key` takes the last of equals.
        let Some((has, row)) = all.iter().rev().max_by_key(|(has, _)| new(has)) else { break };
        missing.retain(|pair| !has.contains(*pair));
        chosen.push(row.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 6] = [2, 3, 2, 3, 2, 2];

    #[test]
    fn every_pair_of_values_meets() {
        let rows = pairs(&SIZES);
        for (one, size) in SIZES.into_iter().enumerate() {
            for (other, other_size) in SIZES.into_iter().enumerate().skip(one + 1) {
                for (a, b) in (0..size).flat_map(|a| (0..other_size).map(move |b| (a, b))) {
                    assert!(
                        rows.iter().any(|row| row[one] == a && row[other] == b),
                        "value {a} of factor {one} never meets value {b} of factor {other}"
                    );
                }
            }
        }
        // Two factors of three values need nine.
        assert!((9..=10).contains(&rows.len()), "{}: {rows:?}", rows.len());
    }

    #[test]
    fn every_value_is_there_in_as_few_rows_as_the_largest_factor_has_values() {
        let rows = values(&SIZES);
        assert_eq!(rows.len(), 3, "{rows:?}");
        for (factor, size) in SIZES.into_iter().enumerate() {
            assert!((0..size).all(|value| rows.iter().any(|row| row[factor] == value)));
        }
    }

    #[test]
    fn the_product_is_whole() {
        let rows: BTreeSet<_> = product(&SIZES).into_iter().collect();
        assert_eq!(rows.len(), SIZES.iter().product::<usize>());
    }
}

//! Small linear programmes.

/// Below this a number of the tableau is taken for 0. Rows are scaled so that their right sides are from 1 to 2, and columns so that none
/// reaches more than that; by powers of two, which rounds nothing.
const ROUNDING: f64 = 1e-9;

/// An optimum.
pub(super) struct Solution {
    /// What is reached.
    pub(super) value: f64,
    /// For each row, by how much the value grows with each unit of its right side.
    pub(super) prices: Vec<f64>,
}

/// Maximises the sum of as many variables, none of them negative, as there are columns, such that each row of coefficients (by column; none is
/// negative) comes to at most its right side, which is above 0. Nothing if there is no maximum.
///
/// The simplex method on a dense tableau, from the origin. Source: Bland, "New finite pivoting rules for the simplex method", 1977, by which
/// it ends.
pub(super) fn maximise(columns: usize, rows: &[(Vec<f64>, f64)]) -> Option<Solution> {
    let width = columns + rows.len();
    // The most that each variable can be by itself.
    let most = |column: usize| rows.iter().map(|(row, right)| right / row[column]).fold(f64::INFINITY, f64::min);
    let most: Vec<f64> = (0..columns).map(most).collect();
    if most.contains(&f64::INFINITY) {
        return None;
    }
    let most: Vec<f64> = most.into_iter().map(magnitude).collect();
    let largest = most.iter().copied().fold(0.0, f64::max);
    // Each row with its slack variable, and its right side at the end.
    let mut tableau: Vec<Vec<f64>> = Vec::with_capacity(rows.len());
    for (index, (row, right)) in rows.iter().enumerate() {
        let by = magnitude(*right);
        let mut scaled: Vec<f64> = row.iter().zip(&most).map(|(coefficient, most)| coefficient * most / by).collect();
        scaled.resize(width + 1, 0.0);
        scaled[columns + index] = 1.0;
        scaled[width] = right / by;
        tableau.push(scaled);
    }
    // What a unit of each variable would add, of `largest`, and at the end what is reached so far, negative.
    let mut gains: Vec<f64> = most.iter().map(|most| most / largest).collect();
    gains.resize(width + 1, 0.0);
    let mut basis: Vec<usize> = (columns..width).collect();
    while let Some(entering) = gains[..width].iter().position(|&gain| gain > ROUNDING) {
        let ratio = |row: &usize| tableau[*row][width] / tableau[*row][entering];
        let leaving = (0..rows.len())
            .filter(|&row| tableau[row][entering] > ROUNDING)
            .min_by(|one, other| ratio(one).total_cmp(&ratio(other)).then(basis[*one].cmp(&basis[*other])))?;
        basis[leaving] = entering;
        let by = tableau[leaving][entering];
        tableau[leaving].iter_mut().for_each(|number| *number /= by);
        let pivot = tableau[leaving].clone();
        let subtract = |row: &mut Vec<f64>| {
            let times = row[entering];
            row.iter_mut().zip(&pivot).for_each(|(number, pivot)| *number -= times * pivot);
        };
        tableau.iter_mut().enumerate().filter(|(row, _)| *row != leaving).for_each(|(_, row)| subtract(row));
        subtract(&mut gains);
    }
    let price = |(row, (_, right)): (usize, &(Vec<f64>, f64))| match -gains[columns + row] {
        price if price > ROUNDING => price * largest / magnitude(*right),
        _ => 0.0,
    };
    Some(Solution { value: -gains[width] * largest, prices: rows.iter().enumerate().map(price).collect() })
}

/// The largest power of two that is not above a number.
fn magnitude(number: f64) -> f64 {
    f64::from_bits(number.to_bits() & 0x7ff0_0000_0000_0000).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
            /// By weak duality prices that pay for each variable prove that no more can be reached.
            #[test]
            fn prices_prove_the_bound(
                rows in prop::collection::vec((prop::collection::vec(0u32..4, 5), 1u32..1000, -9i32..9), 1..6),
            ) {
                let row = |(row, right, power): (Vec<u32>, u32, i32)| {
                    (row.into_iter().map(f64::from).collect::<Vec<_>>(), f64::from(right) * 10f64.powi(power))
                };
                let rows: Vec<_> = rows.into_iter().map(row).collect();
                let pays = |prices: &[f64], column: usize| rows.iter().zip(prices).map(|((row, _), price)| row[column] * price).sum::<f64>();
                match maximise(5, &rows) {
                    None => prop_assert!((0..5).any(|column| rows.iter().all(|(row, _)| row[column] == 0.0))),
                    Some(found) => {
                        let paid: f64 = rows.iter().zip(&found.prices).map(|((_, right), price)| right * price).sum();
                        prop_assert!((paid / found.value - 1.0).abs() < 1e-6, "{} {}", paid, found.value);
    // A variable that could not add as much as a millionth is left out.
                        let most = |column: usize| rows.iter().map(|(row, right)| right / row[column]).fold(f64::INFINITY, f64::min);
                        let unpaid = |column: usize| (1.0 - pays(&found.prices, column)) * most(column);
                        prop_assert!((0..5).all(|column| unpaid(column) < 1e-6 * found.value), "{:?}", found.prices);
                    }
                }
            }
        }

    #[test]
    fn what_binds_has_a_price() {
        // x + y <= 4, x <= 3, 2 y <= 3.
        let rows = [(vec![1.0, 1.0], 4.0), (vec![1.0, 0.0], 3.0), (vec![0.0, 2.0], 3.0)];
        let found = maximise(2, &rows).unwrap();
        assert_eq!((found.value, found.prices[0]), (4.0, 1.0));
        let found = maximise(2, &[(vec![1.0, 1.0], 5.0), rows[1].clone(), rows[2].clone()]).unwrap();
        assert_eq!((found.value, found.prices), (4.5, vec![0.0, 1.0, 0.5]));
        assert!(maximise(2, &rows[1..2]).is_none());
        // Numbers of any size.
        for size in [1e-12, 1e12] {
            let rows: Vec<_> = rows.iter().map(|(row, right)| (row.clone(), right * size)).collect();
            assert!((maximise(2, &rows).unwrap().value / (4.0 * size) - 1.0).abs() < 1e-9);
        }
        assert_eq!(maximise(0, &[]).unwrap().value, 0.0);
    }
}

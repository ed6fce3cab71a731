//! Few cases in which each level of each factor meets each level of each other factor.

use std::collections::BTreeSet;

/// Two factors (by their numbers, the smaller first), each with its level.
type Pair = ((usize, usize), (usize, usize));

fn pairs_of(case: &[usize]) -> impl Iterator<Item = Pair> {
    let placed = case.iter().copied().enumerate();
    placed.clone().flat_map(move |first| placed.clone().skip(first.0 + 1).map(move |second| (first, second)))
}

/// The levels of each case, for factors with so many levels. The same factors give the same
/// cases: nothing is drawn by chance.
///
/// Each case begins with the first pair that no case has had, and takes for each other
/// factor the level that meets the most of what is left in it; of equals, that of which the
/// most is left in all.
pub(crate) fn cases(levels: &[usize]) -> Vec<Vec<usize>> {
    let mut left: BTreeSet<Pair> = BTreeSet::new();
    for (first, &of_first) in levels.iter().enumerate() {
        for (second, &of_second) in levels.iter().enumerate().skip(first + 1) {
            let all = (0..of_first).flat_map(|a| (0..of_second).map(move |b| ((first, a), (second, b))));
            left.extend(all);
        }
    }
    let mut cases = Vec::new();
    while let Some(&((first, a), (second, b))) = left.first() {
        let mut chosen: Vec<Option<usize>> = vec![None; levels.len()];
        (chosen[first], chosen[second]) = (Some(a), Some(b));
        for factor in 0..levels.len() {
            if chosen[factor].is_some() {
                continue;
            }
            let meets = |level: usize| {
                let others = chosen.iter().enumerate().filter_map(|(other, at)| Some((other, (*at)?)));
                let pairs = others.map(|other| {
                    let one = (factor, level);
                    if other < one { (other, one) } else { (one, other) }
                });
                let is_in = |(one, other): &&Pair| *one == (factor, level) || *other == (factor, level);
                (pairs.filter(|pair| left.contains(pair)).count(), left.iter().filter(is_in).count())
            };
            // The first of the best.
            let best = (0..levels[factor]).rev().max_by_key(|&level| meets(level));
            chosen[factor] = best;
        }
        let case: Vec<usize> = chosen.into_iter().flatten().collect();
        for pair in pairs_of(&case) {
            left.remove(&pair);
        }
        cases.push(case);
    }
    cases
}

#[test]
fn each_pair_is_in_some_case_and_the_cases_are_few() {
    for levels in [&[2, 2][..], &[3, 1, 4, 2], &[4; 10]] {
        let cases = cases(levels);
        let met: BTreeSet<Pair> = cases.iter().flat_map(|case| pairs_of(case)).collect();
        let all: usize = (0..levels.len())
            .flat_map(|first| (first + 1..levels.len()).map(move |second| levels[first] * levels[second]))
            .sum();
        assert_eq!(met.len(), all, "{levels:?}");
        assert!(cases.iter().all(|case| case.iter().zip(levels).all(|(level, of)| level < of)));
        assert!(cases.len() <= 36, "{levels:?}: {} cases", cases.len());
    }
}

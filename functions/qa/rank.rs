// SPDX-License-Identifier: Apache-2.0
//! Which pieces of the documents are about a question.

use crate::index::Piece;
use std::collections::{HashMap, HashSet};

/// As everywhere: how soon a word that is repeated counts no more, and how much long
/// pieces are held back.
const K1: f32 = 1.2;
const B: f32 = 0.75;

/// (score, index), best first; the first piece of equal ones.
pub type Ranked = Vec<(f32, usize)>;

fn best_first(mut scores: Ranked) -> Ranked {
    scores.sort_by(|(a, i), (b, j)| b.total_cmp(a).then(i.cmp(j)));
    scores
}

/// The cosine of the angle between two vectors; `None` where one is missing, zero, not finite, or
/// of another length.
fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    // f64 holds the square of any f32.
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = product(a, b) / (product(a, a).sqrt() * product(b, b).sqrt());
    (a.len() == b.len() && cosine.is_finite()).then(|| cosine as f32)
}

/// By the cosine of their vectors and the question's; `None` if no piece has one. Pieces without
/// come behind, by their words and with a score of 0.
pub fn by_vectors(pieces: &[Piece], vector: &[f32], question: &str) -> Option<Ranked> {
    let scores: Vec<Option<f32>> = pieces.iter().map(|piece| cosine(&piece.vector, vector)).collect();
    let with = scores.iter().enumerate().filter_map(|(at, score)| score.map(|score| (score, at)));
    let mut ranked = best_first(with.collect());
    if ranked.is_empty() {
        return None;
    }
    if ranked.len() < pieces.len() {
        let without = by_words(pieces, question).into_iter().filter(|(_, at)| scores[*at].is_none());
        ranked.extend(without.map(|(_, at)| (0.0, at)));
    }
    Some(ranked)
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// By the words that they share with the question, rare ones first (BM25); those that share
/// none are left out.
pub fn by_words(pieces: &[Piece], question: &str) -> Ranked {
    let asked: HashSet<String> = words(question).into_iter().collect();
    let (mut counts, mut total, mut found_in) = (Vec::with_capacity(pieces.len()), 0, HashMap::new());
    for piece in pieces {
        let all = words(&piece.text);
        let mut count: HashMap<String, f32> = HashMap::new();
        total += all.len();
        let length = all.len() as f32;
        for word in all.into_iter().filter(|word| asked.contains(word)) {
            *count.entry(word).or_default() += 1.0;
        }
        for word in count.keys() {
            *found_in.entry(word.clone()).or_insert(0.0_f32) += 1.0;
        }
        counts.push((count, length));
    }
    let n_pieces = pieces.len() as f32;
    let mean = (total as f32 / n_pieces).max(1.0);
    let score = |(count, length): &(HashMap<String, f32>, f32)| -> f32 {
        // In one order, so that the sum is always the same.
        let mut words: Vec<(&String, &f32)> = count.iter().collect();
        words.sort_by_key(|(word, _)| *word);
        let of = |(word, n): (&String, &f32)| {
            let rarity = (1.0 + (n_pieces - found_in[word] + 0.5) / (found_in[word] + 0.5)).ln();
            rarity * n * (K1 + 1.0) / (n + K1 * (1.0 - B + B * length / mean))
        };
        words.into_iter().map(of).sum()
    };
    let scores = counts.iter().map(score).enumerate().map(|(at, score)| (score, at));
    best_first(scores.filter(|(score, _)| *score > 0.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, vector: &[f32]) -> Piece {
        Piece { document: "d".into(), from: 1, to: 1, text: text.into(), vector: vector.into() }
    }

    #[test]
    fn rare_words_weigh_more_than_frequent_ones() {
        let pieces = [
            piece("the cat sat on the mat", &[]),
            piece("the dog sat on the Mat, the mat", &[]),
            piece("Zebras graze on the plain", &[]),
        ];
        let order = |question: &str| by_words(&pieces, question).into_iter().map(|(_, at)| at).collect::<Vec<_>>();
        assert_eq!(order("Where do zebras sit on the mat?")[0], 2);
        assert_eq!(order("MAT"), [1, 0]);
        assert_eq!(order("unheard of"), Vec::<usize>::new());
    }

    #[test]
    fn vectors_are_compared_by_their_angle_whatever_their_length() {
        let pieces = [piece("a", &[2.0, 0.0]), piece("b", &[3e30, 4e30]), piece("c", &[0.0, 1e-30])];
        let ranked = by_vectors(&pieces, &[0.0, 7.0], "").unwrap();
        assert_eq!(ranked.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [2, 1, 0]);
        let wanted = [1.0, 0.8, 0.0];
        assert!(ranked.iter().zip(wanted).all(|((score, _), wanted)| (score - wanted).abs() < 1e-6), "{ranked:?}");
    }

    #[test]
    fn pieces_without_a_vector_come_behind_by_their_words() {
        let nan = [f32::NAN, 1.0];
        let pieces = [
            piece("a gnu", &[]),
            piece("a gnu, a zebra", &[0.0, 0.0]),
            piece("far", &[-1.0, 0.0]),
            piece("a whale", &nan),
            piece("zebra", &[f32::INFINITY, 0.0]),
            piece("other", &[1.0]),
        ];
        let ranked = by_vectors(&pieces, &[1.0, 0.0], "gnu zebra").unwrap();
        assert_eq!(ranked[0], (-1.0, 2));
        assert_eq!(ranked[1..].iter().map(|(score, _)| *score).collect::<Vec<_>>(), [0.0; 3]);
        let mut behind: Vec<usize> = ranked[1..].iter().map(|(_, at)| *at).collect();
        assert_eq!(behind[0], 1);
        behind.sort_unstable();
        assert_eq!(behind, [0, 1, 4]);
        for vector in [&[][..], &[0.0, 0.0], &nan, &[1.0, 2.0, 3.0]] {
            assert_eq!(by_vectors(&pieces, vector, "gnu"), None, "{vector:?}");
        }
    }
}

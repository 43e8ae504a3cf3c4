//! `best-of-n --select`: which responses are written, and as what.

use std::fs;

use lensmith::dtype::Dtype;
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use crate::common::cli::{Lab, f32_bytes, file, raw};
use crate::common::data;
use crate::support::{DIM, sampled};

const PROMPTS: usize = 40;
const EACH: usize = 5;
const SELECT: &str =
    "best-of-n @sets.safetensors --model @reward.safetensors --texts @sampled.jsonl --select";

/// Sets without gold scores, their texts, an ensemble, and its rewards with their uncertainty.
fn lab() -> (Lab, Vec<f32>, Vec<f32>) {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, 40, DIM, 1);
    lab.fine("train-reward @seeds.safetensors --ensemble 3 --reward-hidden 32 --epochs 2 --out @reward.safetensors");
    let rows = f32_bytes(&data(7, PROMPTS * EACH, DIM));
    lab.put("sets.safetensors", &file(&[("candidates", "F32", &[PROMPTS, EACH, DIM], rows.clone())]));
    lab.put("emb.safetensors", &file(&[("embeddings", "F32", &[PROMPTS * EACH, DIM], rows)]));
    lab.put("sampled.jsonl", sampled(PROMPTS, EACH).join("\n").as_bytes());
    let scores = lab.fine("score @emb.safetensors --model @reward.safetensors --spread --json").json();
    let [rewards, spread] = ["reward", "spread"].map(|name| {
        let values = scores[name].as_array().expect("a list").iter();
        values.map(|value| value.as_f64().expect("a number") as f32).collect()
    });
    (lab, rewards, spread)
}

fn lines(lab: &Lab, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(lab.at(name)).expect("lines");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &Value) -> f32 {
    value.as_f64().expect("a number") as f32
}

/// The index of the greatest value, of equal ones the first.
fn greatest(values: impl Iterator<Item = (usize, f32)>) -> Option<usize> {
    values
        .fold(None, |best: Option<(usize, f32)>, (i, value)| match best {
            Some((_, most)) if most >= value => best,
            _ => Some((i, value)),
        })
        .map(|(i, _)| i)
}

#[test]
fn the_first_response_by_reward_is_written() {
    let (lab, rewards, spread) = lab();
    let said = lab.fine(&format!("{SELECT} @sft.jsonl --json")).json();
    assert_eq!((&said["curve"], &said["rank"]), (&Value::Null, &Value::Null));
    let written = lines(&lab, "sft.jsonl");
    assert_eq!(written.len(), PROMPTS);
    let mut sum = 0.0;
    for (p, row) in written.iter().enumerate() {
        let best = greatest((0..EACH).map(|r| (r, rewards[p * EACH + r]))).expect("a response");
        let (reward, uncertainty) = (rewards[p * EACH + best], spread[p * EACH + best]);
        assert_eq!(number(&row["reward"]), reward);
        assert_eq!(number(&row["uncertainty"]), uncertainty);
        sum += f64::from(reward);
        let want = json!({
            "prompt": format!("Prompt {p}: "), "completion": format!("{p}{}", "x".repeat(best)),
            "row": p, "candidate": best, "reward": row["reward"], "uncertainty": row["uncertainty"],
        });
        assert_eq!(row, &want);
    }
    let selected = &said["select"];
    let counts = ["prompts", "selected"].map(|name| selected[name].as_u64());
    assert_eq!(counts, [Some(PROMPTS as u64); 2]);
    assert_eq!(selected["out"], lab.text("sft.jsonl"));
    assert!((selected["reward"].as_f64().expect("a number") - sum / PROMPTS as f64).abs() < 1e-12);
    let all = rewards.iter().map(|&r| f64::from(r)).sum::<f64>() / rewards.len() as f64;
    assert!((selected["random"].as_f64().expect("a number") - all).abs() < 1e-12);
}

#[test]
fn limits_leave_out_responses_and_prompts() {
    let (lab, rewards, spread) = lab();
    let mut sorted = spread.clone();
    sorted.sort_by(f32::total_cmp);
    let (most, least, margin) = (sorted[sorted.len() / 2], rewards.iter().sum::<f32>() / 200.0, 0.05f32);
    let limits = format!(
        "--max-uncertainty {most} --min-reward {least} --min-margin {margin} --max-length 5 --min-length 3"
    );
    let said = lab.fine(&format!("{SELECT} @dpo.jsonl --form dpo --uncertainty-penalty 0.5 {limits} --json"));
    let written = lines(&lab, "dpo.jsonl");
    let mut expected = Vec::new();
    for p in 0..PROMPTS {
        let at = |r: usize| p * EACH + r;
        let value = |r: usize| (f64::from(rewards[at(r)]) - 0.5 * f64::from(spread[at(r)])) as f32;
        let length = |r: usize| p.to_string().len() + r;
        let within = |r: &usize| (3..=5).contains(&length(*r)) && spread[at(*r)] <= most;
        let first = greatest((0..EACH).filter(within).map(|r| (r, value(r))));
        let last = greatest((0..EACH).rev().filter(within).map(|r| (r, -value(r))));
        if let (Some(first), Some(last)) = (first, last)
            && first != last
            && value(first) >= least
            && value(first) - value(last) >= margin
        {
            expected.push((p, first, last));
        }
    }
    // The limits bite, each where the others do not.
    assert!(expected.len() > 3 && expected.len() < PROMPTS - 3, "{}", expected.len());
    let found: Vec<(usize, usize, usize)> = written
        .iter()
        .map(|row| {
            let index = |name: &str| row[name].as_u64().expect("a number") as usize;
            (index("row"), index("candidate_chosen"), index("candidate_rejected"))
        })
        .collect();
    assert_eq!(found, expected);
    for (row, &(p, first, last)) in written.iter().zip(&expected) {
        for (side, r) in [("chosen", first), ("rejected", last)] {
            assert_eq!(row[side], format!("{p}{}", "x".repeat(r)));
            assert_eq!(number(&row[format!("reward_{side}")]), rewards[p * EACH + r]);
            assert_eq!(number(&row[format!("uncertainty_{side}")]), spread[p * EACH + r]);
        }
    }
    let left = &said.json()["select"]["left_out"];
    let counts = ["length", "uncertainty", "reward", "margin", "same"]
        .map(|name| left[name].as_u64().expect("a count"));
    assert_eq!(counts.iter().sum::<u64>() as usize, PROMPTS - expected.len(), "{left}");
}

#[test]
fn rows_that_were_not_embedded_are_left_out() {
    let (lab, ..) = lab();
    lab.fine(&format!("{SELECT} @all.jsonl"));
    // Sets with digests of their responses, as lm.embed_candidates writes them.
    let digest = |line: &String| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let mut hash = Xxh3::new();
        for text in row["responses"].as_array().expect("a list").iter().filter_map(Value::as_str) {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        format!("{:016x}", hash.digest())
    };
    let texts = sampled(PROMPTS, EACH);
    let rows = f32_bytes(&data(7, PROMPTS * EACH, DIM));
    let header = |digests: &str| {
        let tensor = json!({
            "dtype": "F32", "shape": [PROMPTS, EACH, DIM], "data_offsets": [0, rows.len()],
        });
        json!({ "__metadata__": { "responses_xxh3": digests }, "candidates": tensor }).to_string()
    };
    let digests: String = texts.iter().map(digest).collect();
    lab.put("known.safetensors", &raw(&header(&digests), &rows));
    lab.put("cut.safetensors", &raw(&header(&digests[16..]), &rows));
    let select = |sets: &str, lines: &[String], out: &str| {
        lab.put("other.jsonl", lines.join("\n").as_bytes());
        lab.run(&format!(
            "best-of-n @{sets} --model @reward.safetensors --texts @other.jsonl --select @{out}"
        ))
    };
    assert_eq!(select("known.safetensors", &texts, "same.jsonl").fine().err, "");
    assert_eq!(lab.bytes("same.jsonl"), lab.bytes("all.jsonl"));
    // An empty response, which has no embedding, and a line that is none.
    let mut more = texts.clone();
    more.insert(3, "{\"prompt\": \"x\", \"responses\": [\"\", \"y\", \"y\", \"y\", \"y\"]}".into());
    more.push("neither".into());
    select("known.safetensors", &more, "more.jsonl").fine();
    let shifted = lines(&lab, "more.jsonl").into_iter().zip(lines(&lab, "all.jsonl"));
    for (p, (mut row, before)) in shifted.enumerate() {
        assert_eq!(row["row"], p + usize::from(p >= 3));
        row["row"] = p.into();
        assert_eq!(row, before);
    }
    let mut turned = texts.clone();
    turned.swap(8, 9);
    let said = select("known.safetensors", &turned, "turned.jsonl");
    let expected = "line 9: responses: expected those that were embedded, in their order, found others";
    assert!(said.code == Some(1) && said.err.contains(expected), "{said:?}");
    let said = select("cut.safetensors", &texts, "cut.jsonl");
    assert!(said.code == Some(1) && said.err.contains("`responses_xxh3`: expected 16"), "{said:?}");
    assert!(!lab.at("turned.jsonl").exists() && !lab.at("cut.jsonl").exists());
}

#[test]
fn an_output_is_replaced_when_asked_and_lengths_may_be_a_column() {
    let (lab, ..) = lab();
    let counted: Vec<String> = sampled(PROMPTS, EACH)
        .iter()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).expect("JSON");
            row["tokens"] = json!([9, 2, 9, 9, 9]);
            row["question"] = row["prompt"].take();
            row.to_string()
        })
        .collect();
    lab.put("counted.jsonl", counted.join("\r\n\n").as_bytes());
    lab.put("out.jsonl", b"precious");
    let line = "best-of-n @sets.safetensors --model @reward.safetensors --texts @counted.jsonl --select @out.jsonl \
                --lengths tokens --max-length 2 --prompt question";
    assert!(lab.run(line).err.contains("exists already: --overwrite replaces it"));
    let said = lab.fine(&format!("{line} --overwrite"));
    assert!(
        said.out.starts_with(&format!("{}: 40 of 40 prompts\nreward ", lab.text("out.jsonl"))),
        "{said:?}"
    );
    assert!(lines(&lab, "out.jsonl").iter().all(|row| row["candidate"] == 1));
}

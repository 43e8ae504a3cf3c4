//! What `verify` finds: a changed byte anywhere in a folder, pairs that are not what their recipe makes, and files that
//! have moved; each named, with what to do.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::cli::{Lab, Said};
use lensmith::backend::DeviceChoice;
use lensmith::data::{Io, ShardRecord, ShardWriter, TensorSpec, inspect_shard};
use lensmith::dtype::Dtype;
use lensmith::synth::{Moved, Recompute, Verified, VerifyOptions};
use lensmith::{Engine, Error};
use serde_json::Value;

/// 80 pairs in 4 shards of 24.
const LINE: &str = "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 24 --threads 1";
const PAIRS: u64 = 80;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, 20, 32, 1);
    lab.fine("train-vae @seeds.safetensors --out @vae.safetensors --hidden 16 --latent 16 --vae-epochs 2");
    lab
}

const KINDS: [(&str, &str); 4] = [
    ("f32", "--dtype f32"),
    ("f16", "--dtype f16"),
    ("bf16", "--dtype bf16"),
    ("latents", "--output latents"),
];

fn made(kind: &str) -> Lab {
    let lab = lab();
    lab.fine(&format!("{LINE} {kind} --out @synth"));
    lab
}

/// The check as the library does it, in this process.
struct Checker(Engine);

impl Checker {
    fn new() -> Checker {
        Checker(Engine::builder().device(DeviceChoice::Cpu).threads(1).build().expect("a device"))
    }

    fn check(&self, folder: &Path, recompute: Recompute, io: Io) -> Result<Verified, Error> {
        let options = VerifyOptions { io, recompute, ..VerifyOptions::default() };
        self.0.verify(folder, &options, &mut |_| ())
    }
}

/// A refused check: one line that says all of `words`.
#[track_caller]
fn refused(lab: &Lab, line: &str, words: &[&str]) -> Said {
    let said = lab.run(line);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{line}: {said:?}");
    assert!(said.err.starts_with("lensmith: ") && said.err.lines().count() == 1, "{said:?}");
    for word in words {
        assert!(said.err.contains(word), "does not say {word:?}: {}", said.err);
    }
    said
}

#[test]
fn a_changed_byte_in_any_region_of_a_shard_is_found_and_named() {
    let checker = Checker::new();
    for (kind, option) in KINDS {
        let lab = made(option);
        let folder = lab.at("synth");
        let name = "synth/pairs-00002.safetensors";
        let good = lab.bytes(name);
        let (header, _) = inspect_shard(&lab.at(name)).expect("a shard");
        let json = 8 + good[8..header.payload].iter().rposition(|&b| b != b' ').expect("a header");
        assert!(json + 2 < header.payload, "no padding");
        let find = |text: &str| {
            let at = good.windows(text.len()).position(|w| w == text.as_bytes());
            at.unwrap_or_else(|| panic!("{text} is not in the header"))
        };
        let mut places = vec![
            ("length, first byte", 0),
            ("length, last byte", 7),
            ("header, first byte", 8),
            ("header, last byte", json),
            ("header, its own checksum", find("\"xxh3\":\"") + 10),
            ("header, a tensor's checksum", find("\"xxh3.") + 30),
            ("header, fingerprint", find("lensmith.fingerprint") + 25),
            ("header, first pair", find("lensmith.first_pair") + 22),
            ("header, dtype", find("\"dtype\"") + 9),
            ("header, shape", find("\"shape\"") + 9),
            ("header, offsets", find("\"data_offsets\"") + 16),
            ("padding, first byte", json + 1),
            ("padding, last byte", header.payload - 1),
        ];
        for tensor in &header.tensors {
            let middle = (tensor.range.start + tensor.range.end) / 2;
            places.extend([
                ("payload, first byte", tensor.range.start),
                ("payload, middle byte", middle),
                ("payload, last byte", tensor.range.end - 1),
            ]);
        }
        assert_eq!(places.len(), 13 + 3 * header.tensors.len());
        for (region, at) in places {
            for flip in [1u8, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                lab.put(name, &bad);
                for io in [Io::Mmap, Io::Read] {
                    let what = format!("{kind}, {region} (byte {at}), {io}");
                    let error = checker.check(&folder, Recompute::NONE, io).expect_err(&what);
                    let text = error.to_string();
                    assert!(text.contains("pairs-00002.safetensors"), "{what}: {text}");
                    assert!(
                        text.contains("remove the file and run the same synth command again"),
                        "{what}: {text}"
                    );
                    assert_eq!(text.lines().count(), 1, "{what}: {text}");
                    if let Some(tensor) = header.tensors.iter().find(|t| t.range.contains(&at)) {
                        assert!(
                            text.contains(&format!("checksum of tensor `{}`", tensor.name)),
                            "{what}: {text}"
                        );
                    }
                }
            }
        }
        for (region, bad) in [
            ("cut by a byte", good[..good.len() - 1].to_vec()),
            ("longer by a byte", {
                let mut longer = good.clone();
                longer.push(0);
                longer
            }),
        ] {
            lab.put(name, &bad);
            let text = checker.check(&folder, Recompute::NONE, Io::Read).expect_err(region).to_string();
            assert!(text.contains("pairs-00002.safetensors"), "{region}: {text}");
        }
        // What the message says to do makes it good.
        fs::remove_file(lab.at(name)).expect("a shard");
        let said =
            refused(&lab, "verify @synth", &["pairs-00002.safetensors: No such file", "`lensmith synth "]);
        assert!(said.err.contains("manifest.json lists it"), "{}", said.err);
        lab.fine(&format!("{LINE} {option} --out @synth"));
        assert!(lab.bytes(name) == good, "{kind}: the shard made anew has other bytes");
        lab.fine("verify @synth");
    }
}

#[test]
fn a_changed_byte_anywhere_in_a_manifest_or_a_recipe_is_found_and_named() {
    let checker = Checker::new();
    let lab = made("--dtype bf16");
    for part in ["0/2", "1/2"] {
        lab.fine(&format!("{LINE} --out @parts --part {part}"));
    }
    lab.fine("verify @parts");
    for (folder, name) in
        [("synth", "manifest.json"), ("parts", "manifest.part-1-of-2.json"), ("synth", "recipe.json")]
    {
        let file = format!("{folder}/{name}");
        let good = lab.bytes(&file);
        // The paths in a recipe are looked at only where something is made from them.
        let recompute = if name == "recipe.json" { Recompute::Sample(1) } else { Recompute::NONE };
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            lab.put(&file, &bad);
            let around =
                String::from_utf8_lossy(&bad[at.saturating_sub(20)..(at + 20).min(bad.len())]).into_owned();
            let error = match checker.check(&lab.at(folder), recompute, Io::Read) {
                Ok(_) => panic!("{name}, byte {at}: not found: {around:?}"),
                Err(error) => error.to_string(),
            };
            // A file whose path is damaged is what cannot be opened.
            let named = error.contains(name) || (name == "recipe.json" && error.contains("cannot"));
            assert!(named && error.lines().count() == 1, "{name}, byte {at} ({around:?}): {error}");
        }
        lab.put(&file, &good);
    }
    // A path that is no pattern is the recipe's fault too, whatever the folder is called.
    let good = lab.bytes("synth/recipe.json");
    let text = String::from_utf8(good.clone()).expect("JSON").replace("/seeds.", "/[eeds.");
    assert!(text.as_bytes() != good, "the recipe names its seeds");
    lab.put("synth/recipe.json", text.as_bytes());
    let error = checker.check(&lab.at("synth"), Recompute::Sample(1), Io::Read).expect_err("a pattern");
    assert!(error.to_string().contains("recipe.json: not a usable recipe file"), "{error}");
    lab.put("synth/recipe.json", &good);
    for (name, hint) in
        [("manifest.json", "put a copy in its place"), ("recipe.json", "the same synth command")]
    {
        let good = lab.bytes(&format!("synth/{name}"));
        for bad in [&good[..good.len() / 2], b""] {
            lab.put(&format!("synth/{name}"), bad);
            refused(&lab, "verify @synth", &[name, "not a usable", hint]);
        }
        lab.put(&format!("synth/{name}"), &good);
    }
    fs::remove_file(lab.at("synth/recipe.json")).expect("a recipe");
    refused(&lab, "verify @synth", &["recipe.json: No such file", "the same synth command", "--recompute 0"]);
    lab.fine("verify @synth --recompute 0");
    lab.fine(&format!("{LINE} --out @synth"));
    lab.fine("verify @synth");
}

/// Writes a shard anew with one byte changed and checksums that fit, in the manifest too.
fn forge(lab: &Lab, shard: u64, tensor: &str, (byte, flip): (usize, u8)) {
    let name = format!("synth/pairs-{shard:05}.safetensors");
    let (header, _) = inspect_shard(&lab.at(&name)).expect("a shard");
    let bytes = lab.bytes(&name);
    let specs: Vec<TensorSpec> = header
        .tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape_tail: t.shape[1..].to_vec() })
        .collect();
    let metadata: BTreeMap<String, String> = header
        .metadata
        .iter()
        .filter(|(k, _)| k.starts_with("lensmith."))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let rows = header.tensors[0].shape[0];
    let mut writer = ShardWriter::create(&lab.at(&name), &specs, rows, &metadata).expect("a shard");
    for (i, t) in header.tensors.iter().enumerate() {
        let mut payload = bytes[t.range.clone()].to_vec();
        if t.name == tensor {
            payload[byte] ^= flip;
        }
        writer.append(i, &payload).expect("bytes");
    }
    let record: ShardRecord = writer.finish().expect("a shard");
    let mut manifest = lab.value("synth/manifest.json");
    manifest["shards"][shard as usize] = serde_json::to_value(record).expect("plain data");
    lab.put("synth/manifest.json", manifest.to_string().as_bytes());
}

#[test]
fn pairs_that_the_recipe_does_not_make_are_found_with_fitting_checksums() {
    for (kind, option) in KINDS {
        let tensors: &[(&str, usize)] = match kind {
            "latents" => &[
                ("chosen_z", 64),
                ("rejected_z", 64),
                ("seed", 8),
                ("chosen_candidate", 4),
                ("rejected_candidate", 4),
            ],
            "f32" => &[("chosen", 128), ("rejected", 128)],
            _ => &[("chosen", 64), ("rejected", 64)],
        };
        let lab = made(option);
        let manifest = lab.bytes("synth/manifest.json");
        for &(tensor, row) in tensors {
            // The first pair of the first shard, an original; one within; the last pair of all.
            for (shard, at) in [(0, 0), (2, 13), (3, 7)] {
                let name = format!("synth/pairs-{shard:05}.safetensors");
                let good = lab.bytes(&name);
                // Candidate -1, the original, becomes a number that a candidate may have.
                let original = shard == 0 && tensor.ends_with("_candidate");
                forge(&lab, shard, tensor, if original { (3, 0x80) } else { (at * row, 1) });
                lab.fine("verify @synth --recompute 0");
                let pair = format!("pair {} (tensor `{tensor}`)", shard * 24 + at as u64);
                for io in ["mmap", "read"] {
                    refused(
                        &lab,
                        &format!("verify @synth --recompute all --io {io}"),
                        &[
                            &pair,
                            &name,
                            "made again from the recipe",
                            "column 0",
                            "run the same synth command again",
                        ],
                    );
                }
                lab.put(&name, &good);
                lab.put("synth/manifest.json", &manifest);
            }
        }
        let said = lab.fine("verify @synth --recompute all --json").json();
        assert_eq!((&said["pairs"], &said["recomputed"]), (&PAIRS.into(), &PAIRS.into()), "{said}");
    }
}

#[test]
fn samples_find_what_all_finds_and_seeds_draw_others() {
    let lab = made("--dtype f32");
    forge(&lab, 1, "rejected", (128 * 5, 1));
    let codes: Vec<Option<i32>> =
        (0..12).map(|seed| lab.run(&format!("verify @synth --recompute 40 --seed {seed}")).code).collect();
    // One pair of 80, drawn in half the samples.
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(1)), "{codes:?}");
    assert_eq!(lab.run("verify @synth --recompute 80").code, Some(1));
    assert_eq!(lab.run("verify @synth --recompute 18446744073709551615").code, Some(1));
    assert_eq!(lab.run("verify @synth --recompute some").code, Some(2));
}

#[test]
fn parts_are_made_again_where_they_are() {
    for (_, option) in KINDS {
        let lab = lab();
        for part in ["1/4", "3/4"] {
            lab.fine(&format!("{LINE} {option} --out @parts --part {part}"));
        }
        for (count, made) in [("0", 0), ("7", 7), ("32", 32), ("1000", 32), ("all", 32)] {
            let said = lab.fine(&format!("verify @parts --recompute {count} --json")).json();
            assert_eq!((&said["pairs"], &said["run_pairs"]), (&32.into(), &PAIRS.into()), "{said}");
            assert_eq!((&said["recomputed"], &said["shards"]), (&made.into(), &2.into()), "{said}");
        }
        let said = lab.fine("verify @parts --recompute all");
        assert!(said.out.contains("32 pairs of the run's 80 in"), "{}", said.out);
        assert!(said.out.contains("32 pairs made again with the same bits"), "{}", said.out);
    }
    let lab = lab();
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 4 --output recipe --out @recipe");
    let said = lab.fine("verify @recipe --json").json();
    assert_eq!((&said["shards"], &said["recomputed"]), (&0.into(), &0.into()), "{said}");
}

#[test]
fn seeds_and_vae_that_have_moved_are_found_where_the_user_says() {
    let lab = made("--output latents");
    let other = Lab::new();
    other.put("a/renamed.safetensors", &lab.bytes("seeds.safetensors"));
    other.put("a/vae2.safetensors", &lab.bytes("vae.safetensors"));
    let pair = lab.fine("inspect @synth --pair 33 --json").json();
    fs::remove_file(lab.at("seeds.safetensors")).expect("seeds");
    let [seeds, vae] = ["a/renamed.safetensors", "a/vae2.safetensors"].map(|n| other.text(n));
    for command in ["verify @synth", "inspect @synth --pair 33"] {
        refused(
            &lab,
            command,
            &["seeds.safetensors: No such file", "recipe.json", "--seeds says where it is"],
        );
    }
    lab.fine("verify @synth --recompute 0");
    let said = lab.fine(&format!("verify @synth --recompute all --seeds {seeds} --json")).json();
    assert_eq!(said["recomputed"], PAIRS, "{said}");
    fs::remove_file(lab.at("vae.safetensors")).expect("a VAE");
    refused(
        &lab,
        &format!("verify @synth --seeds {seeds}"),
        &["vae.safetensors: No such file", "--vae says where it is"],
    );
    lab.fine(&format!("verify @synth --vae {vae} --seeds {seeds}"));
    let again = lab.fine(&format!("inspect @synth --pair 33 --seeds {seeds} --vae {vae} --json")).json();
    assert_eq!(again, pair);

    // Others than those are told by their checksums.
    other.pairs("b/seeds.safetensors", Dtype::F32, 20, 32, 5);
    let strange = other.text("b/seeds.safetensors");
    for command in ["verify @synth", "inspect @synth --pair 33"] {
        refused(
            &lab,
            &format!("{command} --seeds {strange} --vae {vae}"),
            &["recipe.json: the seed pairs differs", "xxh3"],
        );
        refused(
            &lab,
            &format!("{command} --seeds {seeds} {strange} --vae {vae}"),
            &["the seed pairs differs", "expected 1 files, found 2 files"],
        );
    }
    lab.put("seeds.safetensors", &other.bytes("a/renamed.safetensors"));
    lab.fine(
        "train-vae @seeds.safetensors --out @another.safetensors --hidden 16 --latent 16 --vae-epochs 1",
    );
    refused(
        &lab,
        "verify @synth --vae @another.safetensors",
        &["another.safetensors: checksum of the VAE differs"],
    );
    let said = lab.run("verify @synth/pairs-00000.safetensors --vae @another.safetensors");
    assert_eq!(said.code, Some(2), "{said:?}");
}

/// A recipe that was changed by hand is not that of the shards beside it, and the setting is named.
#[test]
fn a_recipe_of_other_settings_is_named_by_the_setting() {
    let lab = made("");
    let good = lab.bytes("synth/recipe.json");
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        (
            |r| r["plan"]["seed"] = 3.into(),
            "setting `plan.seed` (against manifest.json) differs: expected 0, found 3",
        ),
        (|r| r["perturbation"]["sigma2"] = 0.02.into(), "setting `perturbation.sigma2`"),
        (|r| r["mode"] = "residual".into(), "setting `mode`"),
        (|r| r["seeds"]["files"][0]["xxh3"] = "0".into(), "setting `seeds[0].xxh3`"),
    ];
    for (change, words) in cases {
        let mut recipe = lab.value("synth/recipe.json");
        change(&mut recipe);
        lab.put("synth/recipe.json", recipe.to_string().as_bytes());
        refused(&lab, "verify @synth --recompute 0", &["recipe.json", words, "the same synth command"]);
        lab.put("synth/recipe.json", &good);
    }
    let moved = Moved {
        seeds: vec![lab.text("seeds.safetensors")],
        vae: Some(lab.at("vae.safetensors")),
        ..Moved::default()
    };
    let options = VerifyOptions { recompute: Recompute::All, moved, ..VerifyOptions::default() };
    let found = Checker::new().0.verify(&lab.at("synth"), &options, &mut |_| ()).expect("in order");
    assert_eq!((found.pairs, found.recomputed), (PAIRS, PAIRS));
}

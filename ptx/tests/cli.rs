//! The command, on a kernel that takes a tensor map.

use std::process::Command;

const KERNEL: &str = "
.version 8.5
.target sm_90a
.address_size 64
.visible .entry first(.param .align 64 .b8 map[128], .param .u64 out) {
  .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
  .shared .align 128 .b8 s[128]; .shared .align 8 .b64 bar;
  mov.b64 %rd0, map; cvta.param.u64 %rd0, %rd0; ld.param.u64 %rd1, [out];
  mov.u32 %r0, %tid.x; mov.u32 %r1, s; mov.u32 %r2, bar; setp.eq.u32 %p0, %r0, 0;
  @%p0 mbarrier.init.shared.b64 [%r2], 1;
  @%p0 fence.mbarrier_init.release.cluster;
  bar.sync 0;
  @%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 128;
  @%p0 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0, {4, 2}], [%r2];
$w: mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0;
  @!%p1 bra $w;
  mad.lo.u32 %r3, %r0, 4, %r1; ld.shared.u32 %r4, [%r3];
  mad.wide.u32 %rd2, %r0, 4, %rd1; st.global.u32 [%rd2], %r4;
  ret;
}
";

fn run(map: &str) -> (bool, String) {
    let file = std::env::temp_dir().join(format!("ptx-cli-{}-{}.ptx", std::process::id(), map.len()));
    std::fs::write(&file, KERNEL).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptx"));
    command.arg(&file).args(["--print", "32", "--arg", map, "--arg", "u32[32]:unwritten"]);
    let output = command.output().expect("it runs");
    std::fs::remove_file(file).expect("our own file");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

#[test]
fn tensor_maps_as_arguments() {
    // Rows of 16 words; the box begins in the third row, and its last row lies outside.
    let (fine, said) = run("u32[16,5]:iota:box=8,4");
    assert!(fine, "{said}");
    let line = said.lines().find(|l| l.starts_with("argument 1")).expect("the output");
    let words = |row: u32| (36 + 16 * row..44 + 16 * row).map(|n| n.to_string());
    let inside: Vec<String> = (0..3).flat_map(words).collect();
    assert!(line.ends_with(&format!(", {} 0 0 0 0 0 0 0 0", inside.join(" "))), "{line}");
    for (map, words) in [
        ("u32[16,5]:iota:box=8", "1 sizes of the box"),
        ("u32[16,5]:iota:box=8,4:swizzle=16", "swizzle=16"),
        ("u32[16,5]:iota:box=8,4:swizzle=32:fill=nan", "cannot become NaN"),
        ("s8[16,5]:iota:box=16,4", "no tensor map"),
    ] {
        let (fine, said) = run(map);
        assert!(!fine && said.contains(words), "{said}");
    }
}

"""`seechange verify` names what is wrong with the archive."""

from pathlib import Path


def test_deleted_changed_and_foreign_files_are_named(world, exposure):
    root = Path(world.settings.archive)
    gone = next(root.rglob(f"{exposure}/01/psf.*.fits"))
    changed = next(root.rglob(f"{exposure}/01/zp.*.fits"))
    foreign = changed.with_name("foreign.fits")
    kept = {path: path.read_bytes() for path in (gone, changed)}
    try:
        gone.unlink()
        data = bytearray(kept[changed])
        data[len(data) // 2] ^= 1
        changed.write_bytes(data)
        foreign.write_bytes(b"x")
        answer = world.cli("verify")
        assert answer.code == 1
        assert f"missing: {gone.relative_to(root)}" in answer.err
        assert f"changed: {changed.relative_to(root)}" in answer.err
        assert f"orphan: {foreign.relative_to(root)}" in answer.err
        found = {problem["kind"] for problem in world.cli("verify", "--json").json["problems"]}
        assert found == {"missing", "changed", "orphan"}
    finally:
        foreign.unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
    assert world.cli("verify").code == 0


def test_a_damaged_input_stops_the_step_with_one_clear_line(world, exposure):
    path = next(Path(world.settings.archive).rglob(f"{exposure}/02/psf.*.fits"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1])
        with world.as_environment():
            result = world.session.run("process_ccd", {"exposure": exposure, "ccd": "02"}, ["zp"])
        assert not result.success
        failure = next(event for event in result.all_events if event.is_step_failure)
        assert "differs from its row" in failure.event_specific_data.error.to_string()
    finally:
        path.write_bytes(content)

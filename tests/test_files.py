from seechange_assets.files import once_per_file


def test_a_file_is_looked_at_once_until_it_changes(tmp_path):
    path, asked = tmp_path / "raw.fits", []

    def read(file):
        asked.append(file)
        return file.read_text()

    ask = once_per_file(read)
    path.write_text("one")
    assert [ask(path), ask(path)] == ["one", "one"]
    assert len(asked) == 1
    path.write_text("two")  # of the same length
    assert ask(path) == "two"
    other = tmp_path / "other"
    other.write_text("six")
    other.replace(path)
    assert ask(path) == "six"
    assert len(asked) == 3


def test_a_failure_is_not_remembered(tmp_path):
    answers = iter([OSError("away"), "back"])

    def read(_file):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ask, path = once_per_file(read), tmp_path / "raw.fits"
    path.write_text("")
    try:
        ask(path)
    except OSError:
        assert ask(path) == "back"

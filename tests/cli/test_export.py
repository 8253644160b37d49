def test_export_writes_beside_the_classifier(made, commands):
    for form, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        status, out, err = commands("export", made, "--format", form)
        assert (status, out) == (0, ""), err
        path = made.with_suffix(suffix)
        assert err == f"{path}: takes uint8 (n, 32, 32, 3)\n"
        assert path.stat().st_size > 100_000
    assert commands.refusal("export", made, "--format", "onx") == (
        "unknown format 'onx', did you mean 'onnx'? allowed: onnx, torch"
    )

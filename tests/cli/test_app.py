import helpers


def test_app_refuses(tmp_path, commands):
    assert commands.refusal("app", "--port", 65536) == "--port 65536: must be at least 0 and below 65536"
    said = commands.refusal("app", "--checkpoint", "meta-lstm-cifar-fs-5w5")
    assert said.startswith("unknown checkpoint 'meta-lstm-cifar-fs-5w5', did you mean 'meta-lstm-cifar-fs-5w5s'? ")
    without = helpers.Commands(tmp_path, first="import sys; sys.modules['gradio'] = None")
    said = without.refusal("app")
    without.close()
    assert said == "the web page needs gradio, which is not installed: pip install 'metalstm[app]'"

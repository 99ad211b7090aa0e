GUIDE = "unconditional + weight * (conditional - unconditional)"
BOTH = "both = model(ops.concat((x_t, x_t)), ops.concat((t, t)), ops.concat((labels, none)))"
TWO_CALLS = "both = ops.concat((model(x_t, t, labels), model(x_t, t, none)))"
DROP = "ops.select(uniform < probability, ops.full_like(labels, null), labels)"
MISTAKES = [
    ("12.1", GUIDE, "(1 + weight) * conditional - weight * unconditional", "this is the paper's w"),
    ("12.1", GUIDE, "conditional + weight * (unconditional - conditional)", "are swapped"),
    ("12.1", GUIDE, "unconditional + weight * conditional", "the difference c - u is multiplied by w"),
    ("12.1", GUIDE, "weight * conditional", "only the prediction with the label is used"),
    ("12.2", BOTH, TWO_CALLS, "by two calls of the model"),
    ("12.2", "(labels, none)", "(none, labels)", "are swapped"),
    ("12.2", "(labels, none)", "(labels, labels)", "the prediction with the label alone"),
    ("12.2", "(labels, none)", "(none, none)", "both halves are told `null`"),
    ("12.2", "ops.full_like(labels, null)\n", "ops.zeros_like(labels)\n", "0 stands for no label here"),
    ("12.2", "return guide(", "weight = 1 + weight\n    return guide(", "this is the paper's w"),
    ("12.2", BOTH, TWO_CALLS.replace("labels)", "none)", 1).replace("none)))", "labels)))"), "are swapped"),
    ("12.3", DROP, "ops.select(uniform < probability, labels, ops.full_like(labels, null))", "the wrong labels"),
    ("12.3", DROP, "ops.select(uniform[:1] < probability, ops.full_like(labels, null), labels)", "by its own number"),
    ("12.3", DROP, "labels", "no label is dropped"),
    ("12.3", "ops.full_like(labels, null), labels", "ops.zeros_like(labels), labels", "becomes `null`, not 0"),
]

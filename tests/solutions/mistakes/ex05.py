JOINED = "ops.concat((ops.sin(angles), ops.cos(angles)), axis=-1)"
MISTAKES = [
    ("5.1", "/ (half - 1)", "/ half", "divide i by dim / 2 - 1"),
    ("5.1", "-np.log", "np.log", "the exponent's sign is wrong"),
    ("5.1", "np.log(10000)", "np.log10(10000)", "natural logarithm"),
    ("5.1", "10000", "1000", "1000 where 10000"),
    ("5.1", "dim // 2", "dim", "each has a sine and a cosine"),
    ("5.1", "np.exp(-np.log(10000) * np.arange(half) / (half - 1))", "np.linspace(1, 1e-4, half)", "equal ratios"),
    ("5.2", "(ops.sin(angles), ops.cos(angles))", "(ops.cos(angles), ops.sin(angles))", "the halves are swapped"),
    ("5.2", JOINED, "ops.stack((ops.sin(angles), ops.cos(angles)), 2).reshape((-1, dim))", "in turns"),
    ("5.2", "ops.cos(angles)", "ops.sin(angles)", "must be cosines"),
    ("5.2", "sin(angles), ops.cos(angles)", "sin(2 * np.pi * angles), ops.cos(2 * np.pi * angles)", "no factor 2 pi"),
    ("5.2", "sin(angles), ops.cos(angles)", "sin(angles * np.pi / 180), ops.cos(angles * np.pi / 180)", "in radians"),
    ("5.2", "ops.cast(t, ms.float32)", "ops.cast(t + 1, ms.float32)", "not t + 1"),
    ("5.2", JOINED, JOINED + ".T", "the times are the rows"),
]

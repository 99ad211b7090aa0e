X_START = "(x_t - ops.sqrt(1 - bar) * noise) / ops.sqrt(bar)"
NOISE = "(x_t - ops.sqrt(bar) * x_start) / ops.sqrt(1 - bar)"
MISTAKES = [
    ("3.1", "np.cumprod(1 - betas)", "1 - betas", "alpha_t stands where alpha-bar_t belongs"),
    ("3.1", "np.cumprod(1 - betas)", "np.append(1.0, np.cumprod(1 - betas)[:-1])", "not alpha-bar_{t-1}"),
    ("3.1", X_START, "x_t - ops.sqrt(1 - bar) * noise", "still shrunk"),
    ("3.1", X_START, "(x_t - ops.sqrt(1 - bar) * noise) * ops.sqrt(bar)", "multiplied where it must be divided"),
    ("3.1", X_START, "(x_t - ops.sqrt(1 - bar) * noise) / bar", "divide by sqrt(alpha-bar_t)"),
    ("3.1", X_START, "(x_t - (1 - bar) * noise) / ops.sqrt(bar)", "the standard deviation"),
    ("3.1", X_START, "ops.sqrt(1 / bar) * x_t - (1 / bar - 1) * noise", "sqrt(1 / alpha-bar_t - 1)"),
    ("3.1", X_START, "x_t / ops.sqrt(bar) - ops.sqrt(1 - bar) * noise", "only x_t was divided"),
    ("3.1", X_START, "(x_t + ops.sqrt(1 - bar) * noise) / ops.sqrt(bar)", "taken away, not added"),
    ("3.2", "np.cumprod(1 - betas)", "1 - betas", "alpha_t stands where alpha-bar_t belongs"),
    ("3.2", NOISE, "x_t - x_start", "take away sqrt(alpha-bar_t) x_0, then"),
    ("3.2", NOISE, "x_t - ops.sqrt(bar) * x_start", "the noise has variance 1"),
    ("3.2", NOISE, "(x_t - ops.sqrt(bar) * x_start) / (1 - bar)", "divide by the standard deviation"),
    ("3.2", NOISE, "(x_t - bar * x_start) / ops.sqrt(1 - bar)", "sqrt(alpha-bar_t) x_0"),
    ("3.2", NOISE, "(ops.sqrt(bar) * x_start - x_t) / ops.sqrt(1 - bar)", "the sign is wrong"),
]

MEAN = "(x_t - drift * eps) / extract(np.sqrt(alphas), t, x_t.shape)"
LOOP = "p_sample(model, x, t, noise[i + 1], betas, variance)"
DRAW = "np.random.default_rng().standard_normal((len(betas) + 1, *shape))"
SHARED = "np.random.default_rng().standard_normal((len(betas) + 1, 1, *shape[1:])).repeat(shape[0], axis=1)"
MISTAKES = [
    ("10.1", MEAN, "x_t - drift * eps", "the division by sqrt(alpha_t) is missing"),
    ("10.1", "extract(np.sqrt(alphas), t", "extract(np.sqrt(alphas_cumprod), t", "alpha_t belongs, not alpha-bar_t"),
    ("10.1", "np.sqrt(1 - alphas_cumprod), t", "np.sqrt(betas), t", "inside the brackets alpha-bar_t belongs"),
    ("10.1", "np.sqrt(1 - alphas_cumprod), t", "(1 - alphas_cumprod), t", "root of 1 - alpha-bar_t is missing"),
    ("10.1", "np.sqrt(alphas), t", "alphas, t", "the square root of alpha_t is missing"),
    ("10.1", MEAN, "(x_t - extract(betas / (1 - alphas_cumprod), t, x_t.shape) * eps) / extract(alphas, t, x_t.shape)",
     "both square roots are missing"),
    ("10.1", "x_t - drift", "x_t + drift", "it must be taken away"),
    ("10.2", "sigma = np.sqrt(small if", "sigma = (small if", "sigma_t^2 is the variance"),
    ("10.2", "mask * extract", "extract", "noise is added at t = 0"),
    ("10.2", "mask = (t > 0)", "mask = (t[:1] > 0)", "it must for each image by itself"),
    ("10.2", "fixed_small\" else betas", "fixed_large\" else betas", "the two variances are mixed up"),
    ("10.2", "mask * extract(sigma, t, x_t.shape) * noise", "0.0", "no noise at all"),
    ("10.3", LOOP, "p_sample(model, x, t, noise[i], betas, variance)", "noise[0] is x_T"),
    ("10.3", LOOP, "p_sample(model, x, t, noise[1], betas, variance)", "the same noise in every step"),
    ("10.3", LOOP, "p_sample(model, x, t, noise[now + 1], betas, variance)", "the order is reversed"),
    ("10.3", LOOP, "p_sample(model, x, t, noise[i + 1], betas)", "the argument variance is not passed on"),
    ("10.3", "reversed(range(steps))", "range(steps)", "t must fall"),
    ("10.3", "reversed(range(steps))", "reversed(range(1, steps))", "the last step, t = 0, is missing"),
    ("10.3", "mask * extract", "extract", "noise is added at t = 0"),
    ("10.4", DRAW, "np.random.default_rng().uniform(size=(len(betas) + 1, *shape))", "must be standard normal"),
    ("10.4", DRAW, SHARED, "share their noise"),
    ("10.4", "noise[i + 1], betas", "noise[1], betas", "the same noise in every step"),
    ("10.4", "noise[i + 1], betas", "noise[0], betas", "the same noise in every step"),
    ("10.4", "noise[i + 1], betas", "noise[i + 1][:1], betas", "share their noise"),
    ("10.4", "mask * extract", "extract", "noise is added at t = 0"),
    ("10.4", "sigma = np.sqrt(small if", "sigma = (small if", "sigma_t^2 is the variance"),
]

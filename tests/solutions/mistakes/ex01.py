LINEAR = "np.linspace(beta_start, beta_end, timesteps)"
PREV = "np.append(1.0, alphas_cumprod(betas)[:-1])"
MISTAKES = [
    ("1.1", LINEAR, "np.linspace(beta_start, beta_end, timesteps, endpoint=False)", "must be beta_end itself"),
    ("1.1", LINEAR, "np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2", "not its square root"),
    ("1.1", LINEAR, "np.linspace(beta_end, beta_start, timesteps)", "wrong way round"),
    ("1.1", LINEAR, "1 - " + LINEAR, "return the betas"),
    ("1.1", LINEAR, "np.linspace(beta_start, beta_end, timesteps, dtype=np.float32)", "float32 instead of float64"),
    ("1.2", "np.minimum(1 - f[1:] / f[:-1], max_beta)", "1 - f[1:] / f[:-1]", "clipped at max_beta"),
    ("1.2", " ** 2", "", "not squared"),
    ("1.2", "(i / timesteps + s) / (1 + s)", "i / timesteps", "offset s is missing"),
    ("1.2", "1 - f[1:] / f[:-1]", "1 - f[1:] / f[0]", "divide f(i) by f(i - 1)"),
    ("1.2", "np.minimum(1 - f[1:] / f[:-1], max_beta)", "f[1:] / f[0]", "this is alpha-bar"),
    ("1.2", "timesteps + 1", "timesteps", "T - 1 values"),
    ("1.3", "np.cumprod(1 - betas)", "1 - betas", "this is alpha_t"),
    ("1.3", "np.cumprod(1 - betas)", "np.cumprod(betas)", "not of beta_t"),
    ("1.3", "np.cumprod(1 - betas)", "np.cumsum(1 - betas)", "cumprod, not cumsum"),
    ("1.3", "np.cumprod(1 - betas)", "np.sqrt(np.cumprod(1 - betas))", "no square root here"),
    ("1.4", PREV, "alphas_cumprod(betas)", "move it by one step"),
    ("1.4", PREV, "np.roll(alphas_cumprod(betas), 1)", "not the last one"),
    ("1.4", PREV, "alphas_cumprod(betas)[:-1]", "T - 1 values"),
    ("1.4", PREV, "np.append(0.0, alphas_cumprod(betas)[:-1])", "the first value is 1, not 0"),
]

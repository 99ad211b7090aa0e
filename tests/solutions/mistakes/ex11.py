SIGMA = "eta * np.sqrt((1 - ab_prev) / (1 - ab)) * np.sqrt(1 - ab / ab_prev)"
GUARD = "alphas_cumprod[t_prev] if t_prev >= 0 else 1.0\n    return"
GUARD_IN_STEP = "float(alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0"
X_START = "(x_t - (1 - ab) ** 0.5 * eps) / ab**0.5"
DIRECTION = "max(1 - ab_prev - sigma**2, 0.0) ** 0.5"
CLIP = "x_start = ops.clamp(x_start, -1.0, 1.0)"
STEP = "ddim_step(x, eps, now, then, noise[i + 1], alphas_cumprod, eta, clip)"
MISTAKES = [
    ("11.1", SIGMA, "np.sqrt(eta * (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev))", "eta multiplies the variance"),
    ("11.1", SIGMA, "eta**2 * (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)", "this is the variance"),
    ("11.1", SIGMA, "eta * (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)", "both square roots are missing"),
    ("11.1", SIGMA, SIGMA[6:], "eta is missing"),
    ("11.1", f"float({SIGMA})", SIGMA, "returns a float64"),
    ("11.1", "ab_prev) / (1 - ab))", "ab) / (1 - ab_prev))", "upside down"),
    ("11.1", GUARD, "alphas_cumprod[t - 1]\n    return", "DDIM leaps over steps"),
    ("11.1", GUARD, "alphas_cumprod[t_prev]\n    return", "alphas_cumprod[-1] is the last entry"),
    ("11.2", GUARD_IN_STEP, "float(alphas_cumprod[t_prev])", "alphas_cumprod[-1] is the last entry"),
    ("11.2", GUARD_IN_STEP, "float(alphas_cumprod[t - 1])", "DDIM leaps over steps"),
    ("11.2", "    if clip:\n        " + CLIP, "    " + CLIP, "x_0 is clipped where that is not asked for"),
    ("11.2", "    if clip:\n        " + CLIP, "", "x_0 is not clipped"),
    ("11.2", CLIP, CLIP + "; eps = (x_t - ab**0.5 * x_start) / (1 - ab) ** 0.5", "eps is derived again"),
    ("11.2", X_START, "x_t - (1 - ab) ** 0.5 * eps", "the division by sqrt(ab) is missing"),
    ("11.2", X_START, "(x_t - (1 - ab) * eps) / ab", "in x_0 the square roots are missing"),
    ("11.2", DIRECTION, "(1 - ab_prev) ** 0.5", "the direction must give way to the noise"),
    ("11.2", DIRECTION, "max(1 - ab_prev - sigma, 0.0) ** 0.5", "subtract sigma^2 under the root"),
    ("11.2", DIRECTION, "max(1 - ab_prev - sigma**2, 0.0)", "the root of 1 - ab_prev - sigma^2 is missing"),
    ("11.2", DIRECTION, "(1 - ab) ** 0.5", "ab_prev, not ab"),
    ("11.2", " + direction * eps", "", "the term that points to x_t"),
    ("11.2", "sigma * noise", "sigma**2 * noise", "multiplied by the variance sigma^2"),
    ("11.2", " + sigma * noise", "", "sigma noise is missing"),
    ("11.2", "ddim_sigma(alphas_cumprod, t, t_prev, eta)\n", "0.0\n", "the argument eta is ignored"),
    ("11.2", SIGMA, "np.sqrt(eta * (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev))", "eta multiplies the variance"),
    ("11.3", "zip(times, [*times[1:], -1])", "zip(times, times[1:])", "the last step is missing"),
    ("11.3", "zip(times, [*times[1:], -1])", "zip(times, [t - 1 for t in times])", "the next of the times"),
    ("11.3", STEP, "ddim_step(x, eps, now, then, noise[i], alphas_cumprod, eta, clip)", "noise[0] is x_T"),
    ("11.3", STEP, "ddim_step(x, eps, now, then, noise[i + 1], alphas_cumprod, clip=clip)", "eta is not passed on"),
    ("11.3", STEP, "ddim_step(x, eps, now, then, noise[i + 1], alphas_cumprod, eta)", "clip is not passed on"),
]

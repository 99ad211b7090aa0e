KL = "0.5 * (-ratio + ops.exp(ratio) + distance - 1)"
PRIOR = "normal_kl(mean, zero + math.log(1 - ab), zero, zero).mean((1, 2, 3))"
DIVERGENCE = "normal_kl(q_mean, at(np.log(q_variance)), p_mean, p_log_variance)"
ALL_ALIKE = "normal_kl(q_mean, at(np.log(betas * (1 - before) / (1 - ab))), p_mean, p_log_variance).mean((1, 2, 3))"
TERM = "ops.where(first, density, divergence).mean((1, 2, 3))"
CALL = "bound_term(model, x_start, t, noise[now], betas)"
MISTAKES = [
    ("13.1", KL, "-ratio + ops.exp(ratio) + distance - 1", "the factor 1/2 is missing"),
    ("13.1", KL, "0.5 * (-ratio + ops.exp(ratio) + distance)", "the - 1 is missing"),
    ("13.1", KL, "0.5 * (ratio + ops.exp(ratio) + distance - 1)", "the logarithm has the wrong sign"),
    ("13.1", "ops.square(mean1 - mean2)", "ops.abs(mean1 - mean2)", "the distance of the means is squared"),
    ("13.1", "ops.exp(-log_variance2)", "ops.exp(-log_variance1)", "divided by the second variance"),
    (
        "13.1", "ratio = log", "mean1, log_variance1, mean2, log_variance2 = mean2, log_variance2, mean1, "
        "log_variance1\n    ratio = log", "the two Gaussians are swapped",
    ),
    ("13.1", KL, f"({KL}) / math.log(2)", "these are bits"),
    ("13.2", PRIOR, "normal_kl(zero, zero, mean, zero + math.log(1 - ab)).mean((1, 2, 3))", "are swapped"),
    ("13.2", "zero, zero).mean((1, 2, 3))", "zero, zero).sum((1, 2, 3))", "a sum over the dimensions"),
    ("13.2", "zero, zero).mean((1, 2, 3))", "zero, zero).mean()", "a mean over the images too"),
    ("13.2", "math.sqrt(ab) * x_start", "ab * x_start", "the root is missing"),
    ("13.2", "math.log(1 - ab)", "math.log(1 - ab) / 2", "not of its root"),
    ("13.2", "alphas_cumprod[-1]", "alphas_cumprod[0]", "the last entry of the table"),
    ("13.3", DIVERGENCE, "normal_kl(p_mean, p_log_variance, q_mean, at(np.log(q_variance)))", "are swapped"),
    ("13.3", "q_variance = betas * (1 - before) / (1 - ab)", "q_variance = betas.copy()", "beta_t is that of p"),
    ("13.3", DIVERGENCE, "ops.square(q_mean - p_mean) / 2 / at(betas)", "beta_t is that of p"),
    ("13.3", "model(x_t, t)", "model(x_start, t)", "the model must see x_t"),
    ("13.3", TERM, ALL_ALIKE, "NaN or infinity at t = 0"),
    ("13.3", TERM, "ops.where(first, density, divergence).sum((1, 2, 3))", "a sum over the dimensions"),
    ("13.3", "0.5 * (math.log(2 * math.pi) + p_log", "(math.log(2 * math.pi) + p_log", "the factor 1/2 is missing"),
    ("13.3", "math.log(2 * math.pi) + p_log_variance + ", "", "the term log(2 pi beta_0) is missing"),
    ("13.4", "total = prior_term(x_start, np.cumprod(1 - betas))", "total = 0.0", "L_T is missing"),
    ("13.4", "range(len(betas))", "range(1, len(betas))", "L_0, the term at t = 0, is missing"),
    ("13.4", "range(len(betas))", "range(len(betas) - 1)", "the term at t = T-1 is missing"),
    ("13.4", CALL, CALL + " / len(betas)", "the mean over t"),
    ("13.4", CALL, CALL.replace("[now]", "[0]"), "the same noise in every term"),
    ("13.4", CALL, CALL.replace("[now]", "[len(betas) - 1 - now]"), "the order is reversed"),
]

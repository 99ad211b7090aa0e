L1, L2 = "ops.mean(ops.abs(prediction - target))", "ops.mean(ops.square(prediction - target))"
HUBER = "ops.select(d < 1.0, 0.5 * d * d, d - 0.5)"
X_T = "x_t = extract(signal, t, x_start.shape) * x_start + extract(sigma, t, x_start.shape) * noise"
TABLES = "signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)"
RETURN = "distance(model(x_t, t), noise)"
MISTAKES = [
    ("8.1", L1, "ops.sum(ops.abs(prediction - target))", "a sum where the mean"),
    ("8.1", L1, "ops.mean(prediction - target)", "negative errors cancel"),
    ("8.1", L1, "ops.abs(ops.mean(prediction - target))", "of each element"),
    ("8.1", "ops.abs", "ops.square", "this is the squared error"),
    ("8.2", L2, "ops.sum(ops.square(prediction - target))", "a sum where the mean"),
    ("8.2", L2, f"ops.sqrt({L2})", "a root that nobody asked for"),
    ("8.2", L2, f"{L2} / 2", "a factor 1/2"),
    ("8.3", HUBER, "ops.select(d < 1.0, d * d, d - 0.5)", "1/2 at the square is missing"),
    ("8.3", HUBER, "ops.select(d < 1.0, 0.5 * d * d, d)", "- 1/2 of the straight part is missing"),
    ("8.3", HUBER, "ops.select(d > 1.0, 0.5 * d * d, d - 0.5)", "the two pieces are swapped"),
    ("8.3", "ops.mean(" + HUBER, "ops.sum(" + HUBER, "a sum where the mean is asked for"),
    ("8.3", HUBER, "0.5 * d * d", "large ones count linearly"),
    ("8.4", RETURN, "distance(model(x_t, t), x_start)", "compares the prediction with the image"),
    ("8.4", RETURN, "distance(model(x_start, t), noise)", "must see the noised image"),
    ("8.4", RETURN, "huber_loss(model(x_t, t), noise)", "the argument loss says l2"),
    ("8.4", TABLES, "signal, sigma = alphas_cumprod, 1 - alphas_cumprod", "both square roots"),
    ("8.4", TABLES, "signal, sigma = np.sqrt(alphas_cumprod), 1 - alphas_cumprod", "1 - alpha-bar_t is the variance"),
    ("8.4", "signal, sigma =", "sigma, signal =", "the two factors are swapped"),
    ("8.4", X_T, X_T.replace(", t,", ", t[0] + ops.zeros_like(t),"), "every image has its own t"),
    ("8.4", RETURN, "distance(Tensor(model(x_t, t).asnumpy()), noise)", "its gradient 0"),
    ("8.4", RETURN, "distance(ops.stop_gradient(model(x_t, t)), noise)", "its gradient 0"),
]

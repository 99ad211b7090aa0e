UNSCALE = "loss_scaler.unscale(gradients)"
FINITE = "ops.stack([ops.isfinite(gradient).all() for gradient in gradients]).all()"
UPDATE = """        if finite:
            optimizer(gradients)
"""
ADJUST = "        loss_scaler.adjust(finite)"
ZEROS = "        optimizer(gradients if finite else tuple(map(ops.zeros_like, gradients)))\n"
STEP = "loss, gradients = loss_and_gradients(model, loss_fn, loss_scaler, x, target)"
MISTAKES = [
    ("9.1", UNSCALE, "gradients", "the loss scale is not undone"),
    ("9.1", UNSCALE, f"loss_scaler.unscale({UNSCALE})", "too small by the loss scale"),
    ("9.1", "(_, loss), gradients", "(loss, _), gradients", "the loss that is returned is still scaled"),
    ("9.1", "scale(loss), loss", "scale(loss), loss_scaler.scale(loss)", "the loss that is returned is still scaled"),
    ("9.1", "return loss_scaler.scale(loss), loss", "return loss * 1.0, loss", "too small by the loss scale"),
    (
        "9.1", "return loss, loss_scaler.unscale(gradients)", "return loss_scaler.scale(loss), gradients",
        "both returned still scaled",
    ),
    ("9.2", FINITE, "ops.isfinite(gradients[0]).all()", "only some of the gradients"),
    ("9.2", FINITE, "ops.isfinite(gradients[-1]).all()", "only some of the gradients"),
    ("9.2", FINITE, "ops.stack([~ops.isinf(gradient).any() for gradient in gradients]).all()", "NaN passes"),
    ("9.2", FINITE, "ops.stack([(gradient < float('inf')).all() for gradient in gradients]).all()", "minus infinity"),
    ("9.2", FINITE, "ops.isfinite(sum(gradient.sum() for gradient in gradients))", "their sum overflows"),
    ("9.2", FINITE, f"bool({FINITE})", "adjust needs a bool Tensor"),
    ("9.2", FINITE, "~" + FINITE, "finite gradients are called infinite"),
    ("9.3", STEP, STEP + "; gradients = loss_scaler.scale(gradients)", "the loss scale is not undone"),
    ("9.3", STEP, STEP + "; gradients = loss_scaler.unscale(gradients)", "too small by the loss scale"),
    ("9.3", "return loss, finite", "return loss_scaler.scale(loss), finite", "is still scaled"),
    ("9.3", UPDATE, "", "the optimizer is never called"),
    ("9.4", "        if finite:\n    ", "", "the overflow is not skipped"),
    ("9.4", UPDATE, ZEROS, "with zeros for gradients Adam still moves"),
    ("9.4", ADJUST, "        pass", "the scale is not halved after an overflow"),
    ("9.4", ADJUST, ADJUST + "\n" + ADJUST, "divided twice after an overflow"),
    ("9.4", ADJUST, "        loss_scaler.adjust(~finite)", "the scale falls after good steps"),
    ("9.4", "finite = all_finite(gradients)", "finite = all_finite(gradients[:1])", "step says that they are finite"),
    ("9.5", ADJUST, "        pass", "the scale never changes"),
    ("9.5", ADJUST, "        if not finite:\n    " + ADJUST, "the scale never grows"),
    ("9.5", ADJUST, "        if finite:\n    " + ADJUST, "outside the if"),
    ("9.5", ADJUST, ADJUST + "\n" + ADJUST, "adjusted twice in a step"),
    ("9.5", ADJUST, "        loss_scaler.adjust(~finite)", "this is the opposite"),
    ("9.5", "        if finite:\n    ", "", "the step was not skipped"),
]

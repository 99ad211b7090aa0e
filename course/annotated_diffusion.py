# %% [markdown] lang="en"
r"""
# The annotated diffusion model, on MindSpore

This notebook teaches denoising diffusion from the first formula to a picture that was never drawn. It follows the
MindSpore tutorial, which itself follows *The Annotated Diffusion Model* of Niels Rogge and Kashif Rasul. The code is
that of the library `ms_diffusion`: each piece is printed where it is taught, read from the very files that this
notebook runs.

Two kinds of boxes stand between the sections:

> **Question.** What learners ask, answered with numbers that the next code cell computes again.

> **Mended 0.** A defect of the original tutorial (they are counted from 1 to 20), and what the library does instead.

By default a network learns scikit-learn's handwritten digits, 8x8 pixels, in a few minutes on two CPU cores, without a
download. The switch to Fashion-MNIST stands in the next cell. To run it yourself:
`pip install -r requirements-course.txt -e . jupyterlab` and open it in Jupyter; or `bash scripts/notebooks.sh`, which
makes this notebook and its Chinese twin anew.
"""
# %% [markdown] lang="zh"
r"""
# 带注释的扩散模型（MindSpore 版）

本 notebook 从第一个公式讲起，一直讲到生成一张从未有人画过的图片。内容依照昇思 MindSpore 的扩散模型教程，而该教程译自
Niels Rogge 与 Kashif Rasul 的 *The Annotated Diffusion Model*。代码就是 `ms_diffusion` 库本身：讲到哪里，就在哪里打印出
来，直接读自本 notebook 正在运行的源文件。

各节之间有两种方框：

> **问：** 学习者常问的问题。回答里的数字，都由紧接着的代码单元重新算出。

> **修正 0** 原教程的一处缺陷（编号 1 到 20），以及本库的做法。

默认训练数据是 scikit-learn 自带的 8x8 手写数字，两个 CPU 核上几分钟即可训练完，不需要下载任何东西。改用 Fashion-MNIST
的开关在下一个代码单元里。自己运行：先 `pip install -r requirements-course.txt -e . jupyterlab`，再用 Jupyter 打开；或者
用 `bash scripts/notebooks.sh` 重新生成本 notebook 和它的英文版。
"""

# %%
import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore says errors only; before its import

DATA = os.environ.get("COURSE_DATA", "digits")  # the switch: "digits" or "fashion_mnist"
STEPS = int(os.environ.get("COURSE_STEPS", "2000"))  # of training
RUN = os.environ.get("COURSE_RUN", "runs/annotated_diffusion")  # the run folder: nothing is written elsewhere

from ms_diffusion import runtime
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, ModelConfig, RuntimeConfig, TrainConfig

print(f"data: {DATA}, training steps: {STEPS}, device: {runtime.setup(RuntimeConfig())}")

# %%
import dataclasses
import inspect
import json
import math
import textwrap
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display
from mindspore import Tensor, ops
from scipy.stats import norm

from ms_diffusion import batches, checkpoint, data, layers, likelihood, randomness, samplers, schedules, visualize
from ms_diffusion.diffusion import GaussianDiffusion, extract
from ms_diffusion.evaluation import judge_digits
from ms_diffusion.guidance import Guided
from ms_diffusion.sampling import sample
from ms_diffusion.train_step import learning_rates, make_train_step
from ms_diffusion.training import build, train
from ms_diffusion.unet import Unet, count_parameters, init_weights

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})


def show(*things):
    """Print the source of the library's functions and classes, as it runs here."""
    for thing in things:
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
        display(Markdown(f"`{thing.__module__}.{thing.__qualname__}`\n\n```python\n{source}\n```"))


def show_picture(save, kind):
    """Display what `save(file, format=...)` writes: "png", or "jpeg" where noise makes a PNG large."""
    file = BytesIO()
    save(file, format=kind)
    display(Image(file.getvalue()))


def show_images(x, columns):
    """Display images (N, C, H, W) in [-1, 1] as one grid."""
    show_picture(visualize.make_grid(data.to_uint8(np.asarray(x)), columns, cell=40).save, "png")


# %% [markdown] lang="en"
r"""
## 1. What is a diffusion model?

A diffusion model is less complicated than it sounds beside normalising flows, GANs or VAEs: like them, it turns noise
from a simple distribution into a sample of the data. It does so in many small steps. Two processes belong to it:

- a **forward process** $q$, fixed beforehand, which adds a little Gaussian noise at each of $T$ time steps, until
  nothing but noise is left;
- a learned **reverse process** $p_\theta$, in which a neural network takes the noise away again, a little at each step,
  beginning with pure noise and ending with an image.

The forward process makes the exercises and their solutions: a noisy image, and the noise that is in it. The reverse
process learns from them. The paper is Ho, Jain and Abbeel, *Denoising Diffusion Probabilistic Models* (2020), "DDPM"
from here on; its idea goes back to Sohl-Dickstein et al. (2015).
"""
# %% [markdown] lang="zh"
r"""
## 1. 什么是扩散模型？

与标准化流（Normalizing Flows）、GAN 或 VAE 相比，扩散模型并不复杂：它们都把某种简单分布的噪声变成数据样本，扩散模型只是
分成许多小步来做。它由两个过程组成：

- **前向过程** $q$：预先固定，在 $T$ 个时间步里每步加入少量高斯噪声，直到只剩下噪声；
- **逆向过程** $p_\theta$：由神经网络学习，从纯噪声开始，每步去掉一点噪声，最后得到一张图片。

前向过程负责“出题并给出答案”：一张带噪声的图片，以及其中的噪声；逆向过程则从这些题目中学习。本文依据的论文是 Ho、Jain、
Abbeel 的 *Denoising Diffusion Probabilistic Models*（2020），下文简称 DDPM；其思想可追溯到 Sohl-Dickstein 等人
（2015）。
"""

# %% [markdown] lang="en"
r"""
## 2. How it works

### 2.1 The forward process

Let $q(x_0)$ be the distribution of the real images. One step adds noise of variance $\beta_t$, with
$0 < \beta_1 < \beta_2 < \dots < \beta_T < 1$, to an image whose values were made a little smaller:

$$q(x_t \mid x_{t-1}) = \mathcal{N}\big(x_t;\ \sqrt{1-\beta_t}\,x_{t-1},\ \beta_t I\big),
\qquad x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon,\quad \epsilon \sim \mathcal{N}(0, I).$$

Each step looks only at the one before it: a Markov chain. Sums of Gaussians are Gaussian, and so one can jump to any
$t$ at once. With $\alpha_t = 1 - \beta_t$ and $\bar\alpha_t = \prod_{s=1}^t \alpha_s$,

$$q(x_t \mid x_0) = \mathcal{N}\big(x_t;\ \sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t) I\big),
\qquad x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon.$$

The paper counts $t = 1 \dots T$; arrays, and this library, count $t = 0 \dots T-1$.
"""
# %% [markdown] lang="zh"
r"""
## 2. 扩散模型的原理

### 2.1 前向过程

设 $q(x_0)$ 为真实图片的分布。每一步先把像素值略微缩小，再加上方差为 $\beta_t$ 的噪声，其中
$0 < \beta_1 < \beta_2 < \dots < \beta_T < 1$：

$$q(x_t \mid x_{t-1}) = \mathcal{N}\big(x_t;\ \sqrt{1-\beta_t}\,x_{t-1},\ \beta_t I\big),
\qquad x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon,\quad \epsilon \sim \mathcal{N}(0, I).$$

每一步只与上一步有关，所以这是一个马尔可夫链。高斯变量之和仍是高斯变量，因此可以一步跳到任意时刻 $t$。记
$\alpha_t = 1 - \beta_t$，$\bar\alpha_t = \prod_{s=1}^t \alpha_s$，则

$$q(x_t \mid x_0) = \mathcal{N}\big(x_t;\ \sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t) I\big),
\qquad x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon.$$

论文中 $t = 1 \dots T$；数组以及本库的代码中 $t = 0 \dots T-1$。
"""

# %% [markdown] lang="en"
r"""
> **Question. Is the jump really the same as t single steps?** Yes, in distribution. Take 200,000 copies of one pixel
> with the value 0.8 and add noise step by step; mean and standard deviation agree with the closed form within the error
> of the sampling, which is about 0.002.
"""
# %% [markdown] lang="zh"
r"""
> **问：一步跳到 t，真的和逐步加噪 t 次一样吗？** 就分布而言完全一样。取 20 万个值为 0.8 的像素，逐步加噪，其均值和标准
> 差与闭式解一致，差别不超过抽样误差（约 0.002）。
"""

# %%
schedule = schedules.NoiseSchedule(schedules.linear_beta_schedule(200))
rng = np.random.default_rng(0)
x = np.full(200_000, 0.8)
print("  t    mean: steps, closed form    std: steps, closed form")
for t, beta in enumerate(schedule.betas):
    x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.standard_normal(x.shape)
    if t in (0, 9, 49, 99, 199):
        mean, std = 0.8 * schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
        print(f"{t:3d}    {x.mean():11.4f} {mean:12.4f}    {x.std():10.4f} {std:12.4f}")

# %% [markdown] lang="en"
r"""
> **Question. What does $\mathbb{E}_q$ mean, and what is $q$?** $q$ names every distribution of the forward process:
> $q(x_0)$, your data; $q(x_t \mid x_{t-1})$, one step; $q(x_t \mid x_0)$, the jump; $q(x_{t-1} \mid x_t, x_0)$, a step
> back with the answer known. $\mathbb{E}_q[\dots]$ is the mean over all that $q$ can draw: an image, then noise. Nobody
> computes it exactly; one draws and averages (Monte Carlo). For example
> $\mathbb{E}_q[x_t^2] = \bar\alpha_t\,\mathbb{E}[x_0^2] + 1 - \bar\alpha_t$. The error of the average falls as one over
> the square root of the number of draws.
"""
# %% [markdown] lang="zh"
r"""
> **问：$\mathbb{E}_q$ 是什么意思？$q$ 又是什么？** $q$ 指前向过程定义的一族分布：$q(x_0)$ 是数据集；
> $q(x_t \mid x_{t-1})$ 是单步加噪；$q(x_t \mid x_0)$ 是一步跳到 $t$；$q(x_{t-1} \mid x_t, x_0)$ 是已知答案时退回一步。
> $\mathbb{E}_q[\dots]$ 就是对 $q$ 所有可能的抽样（先抽一张图片，再抽噪声）求平均。它不必精确计算，抽样取平均即可（蒙特
> 卡洛方法）。例如 $\mathbb{E}_q[x_t^2] = \bar\alpha_t\,\mathbb{E}[x_0^2] + 1 - \bar\alpha_t$。平均值的误差与抽样次数的
> 平方根成反比。
"""

# %%
digits = data.make_dataset(DataConfig(), channels=1).batch(np.arange(1797))
pixels, t = digits.ravel(), 100
exact = schedule.alphas_cumprod[t] * np.square(pixels).mean() + 1 - schedule.alphas_cumprod[t]
print(f"exact: {exact:.4f}")
for draws in (100, 10_000, 1_000_000):
    x_0, eps = rng.choice(pixels, draws), rng.standard_normal(draws)
    x_t = schedule.sqrt_alphas_cumprod[t] * x_0 + schedule.sqrt_one_minus_alphas_cumprod[t] * eps
    error = np.square(x_t).std() / np.sqrt(draws)
    print(f"{draws:9,d} draws: {np.square(x_t).mean():.4f}, standard error {error:.4f}")

# %% [markdown] lang="en"
r"""
### 2.2 The reverse process

If we knew $p(x_{t-1} \mid x_t)$, we could run the process backwards: draw $x_T \sim \mathcal{N}(0, I)$, then $x_{T-1}$,
and so on to an image. We do not know it, because it depends on the distribution of all possible images. So a network
with the parameters $\theta$ approximates it, as a Gaussian:

$$p_\theta(x_{t-1} \mid x_t) = \mathcal{N}\big(x_{t-1};\ \mu_\theta(x_t, t),\ \Sigma_\theta(x_t, t)\big).$$

DDPM fixes the variance, $\Sigma_\theta = \sigma_t^2 I$, and learns the mean alone. What we do know is the step back
when $x_0$ is given, by Bayes' theorem:

$$q(x_{t-1} \mid x_t, x_0) = \mathcal{N}\big(x_{t-1};\ \tilde\mu_t(x_t, x_0),\ \tilde\beta_t I\big),$$

$$\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0
+ \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t,
\qquad \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t.$$

$\sigma_t^2$ is $\tilde\beta_t$ or $\beta_t$: the former is right if the data are a single point, the latter if they are
noise themselves. The next cell does Bayes' theorem with a ruler: it multiplies the two densities on a fine grid and
measures.
"""
# %% [markdown] lang="zh"
r"""
### 2.2 逆向过程

如果知道 $p(x_{t-1} \mid x_t)$，就可以把过程倒过来：先采样 $x_T \sim \mathcal{N}(0, I)$，再采样 $x_{T-1}$，一直到得到图
片。可是我们不知道它，因为它取决于所有可能图片的分布。于是用参数为 $\theta$ 的神经网络来近似，并假设它也是高斯分布：

$$p_\theta(x_{t-1} \mid x_t) = \mathcal{N}\big(x_{t-1};\ \mu_\theta(x_t, t),\ \Sigma_\theta(x_t, t)\big).$$

DDPM 把方差固定为 $\Sigma_\theta = \sigma_t^2 I$，只学习均值。而在给定 $x_0$ 时，退回一步的分布可由贝叶斯定理求出：

$$q(x_{t-1} \mid x_t, x_0) = \mathcal{N}\big(x_{t-1};\ \tilde\mu_t(x_t, x_0),\ \tilde\beta_t I\big),$$

$$\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0
+ \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t,
\qquad \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t.$$

$\sigma_t^2$ 取 $\tilde\beta_t$ 或 $\beta_t$：若数据只有一个点，前者正确；若数据本身就是噪声，后者正确。下面的代码单元用
“尺子”验证贝叶斯定理：在细密的网格上把两个密度相乘，再量出均值和方差。
"""

# %%
show(GaussianDiffusion.q_posterior)
t, x_0, x_t = 20, 0.4, -0.1
grid = np.linspace(-3, 3, 600_001)  # candidates for x_{t-1}
density = norm.pdf(x_t, np.sqrt(schedule.alphas[t]) * grid, np.sqrt(schedule.betas[t])) * norm.pdf(
    grid, schedule.sqrt_alphas_cumprod[t - 1] * x_0, schedule.sqrt_one_minus_alphas_cumprod[t - 1]
)
density /= density.sum()
mean = (grid * density).sum()
variance = (np.square(grid - mean) * density).sum()
formula = schedule.posterior_mean_coef1[t] * x_0 + schedule.posterior_mean_coef2[t] * x_t
print(f"mean:     grid {mean:.8f}, formula {formula:.8f}")
print(f"variance: grid {variance:.8f}, formula {schedule.posterior_variance[t]:.8f}, beta_t {schedule.betas[t]:.8f}")

# %% [markdown] lang="en"
r"""
> **Question. Is $p_\theta$ the model itself, or the probability of a good picture?** It is the model, as a
> distribution; $\theta$ are the network's weights. $p_\theta(x_0)$ is the density that this model gives to the image
> $x_0$: how likely it is to draw just this one. Training makes the real images likely. Section 7 measures it for the
> trained network: real digits cost it far fewer bits than the same pixels in disorder.

> **Question. What do the two bars in $D_{\mathrm{KL}}(P \,\|\, Q)$ mean, and what does the KL divergence measure?** The
> bars only separate two distributions. The divergence is the mean, over draws of $P$, of $\log P - \log Q$: how much is
> lost by taking $Q$ for $P$. It is never negative, and zero only if the two are the same. It is **not symmetric**: the
> first is the true map, the second your sketch. For two Gaussians
> $D_{\mathrm{KL}} = \log\frac{\sigma_2}{\sigma_1} + \frac{\sigma_1^2 + (\mu_1-\mu_2)^2}{2\sigma_2^2} - \frac12$.
"""
# %% [markdown] lang="zh"
r"""
> **问：$p_\theta$ 是模型本身，还是生成出好图片的概率？** 它是模型本身，而且是一个概率分布；$\theta$ 是网络的全部权重。
> $p_\theta(x_0)$ 是这个模型给图片 $x_0$ 的概率密度：它有多大可能恰好画出这一张。训练就是让真实图片的密度尽可能高。第 7
> 节会对训练好的网络实测：真实数字所需的比特数，远少于把同样的像素打乱之后的图片。

> **问：$D_{\mathrm{KL}}(P \,\|\, Q)$ 里的双竖线是什么意思？KL 散度衡量什么？** 双竖线只是把两个分布隔开的记号。KL 散度
> 是按 $P$ 抽样时 $\log P - \log Q$ 的平均值：把 $Q$ 当作 $P$ 会损失多少信息。它不会是负数，只有两个分布完全相同时才为
> 零。它**不对称**：前一个是真实地图，后一个是你画的草图。对两个高斯分布，
> $D_{\mathrm{KL}} = \log\frac{\sigma_2}{\sigma_1} + \frac{\sigma_1^2 + (\mu_1-\mu_2)^2}{2\sigma_2^2} - \frac12$。
"""


# %%
def kl(mean1, std1, mean2, std2):
    """The KL divergence of N(mean2, std2^2) from N(mean1, std1^2), in nats."""
    return np.log(std2 / std1) + (std1**2 + (mean1 - mean2) ** 2) / (2 * std2**2) - 0.5


P, Q = (0.0, 1.0), (1.0, 2.0)
for name, first, second in (("KL(P || Q)", P, Q), ("KL(Q || P)", Q, P), ("KL(P || P)", P, P)):
    draws = rng.normal(*first, 1_000_000)
    difference = norm.logpdf(draws, *first) - norm.logpdf(draws, *second)
    print(f"{name}: formula {kl(*first, *second):.4f}, mean of a million draws {difference.mean():.4f}")

# %% [markdown] lang="en"
r"""
### 2.3 What is minimised

We want the real images to be likely, $\log p_\theta(x_0)$ to be large. That number would need a sum over every path
from noise to the image. As with a VAE one maximises a lower bound, the **ELBO** (evidence lower bound, here also
variational lower bound):

$$\log p_\theta(x_0) \ \ge\ L_{\mathrm{VLB}}
= \mathbb{E}_q\left[\log\frac{p_\theta(x_{0:T})}{q(x_{1:T} \mid x_0)}\right]
= \mathbb{E}_q\left[\log p(x_T) + \sum_{t=1}^T \log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\right].$$

By Bayes' theorem for every factor with $t \ge 2$ it becomes

$$L_{\mathrm{VLB}} = \mathbb{E}_q\big[\log p_\theta(x_0 \mid x_1)\big]
{} - D_{\mathrm{KL}}\big(q(x_T \mid x_0) \,\|\, p(x_T)\big)
{} - \sum_{t=2}^T \mathbb{E}_q\Big[
D_{\mathrm{KL}}\big(q(x_{t-1} \mid x_t, x_0) \,\|\, p_\theta(x_{t-1} \mid x_t)\big)\Big].$$

The first term is the **reconstruction term**, the second has no parameters, and the sum is what training is about: at
each $t$ the network's step back should be the one that it would take if it knew $x_0$.

> **Question. Why are the two sides equal?** The first form is the definition. The joint densities are products over the
> steps, so the logarithm of their quotient is a sum: the second form, equal **path by path**. The third is equal **on
> average**: it replaces a draw by its mean. And the bound lies below $\log p_\theta(x_0)$, by the divergence between
> the true path and the modelled one. The next cell checks all of it with one pixel, three steps and a reverse process
> whose $\log p_\theta(x_0)$ can be computed: it is linear,
> $p_\theta(x_{t-1} \mid x_t) = \mathcal{N}(0.9\,x_t,\ 0.3^2)$.
"""
# %% [markdown] lang="zh"
r"""
### 2.3 最小化的是什么

我们希望真实图片的似然尽可能大，即 $\log p_\theta(x_0)$ 尽可能大。但直接计算它需要对所有从噪声到图片的路径求和。于是与
VAE 一样，转而最大化它的下界 **ELBO**（证据下界，这里也叫变分下界）：

$$\log p_\theta(x_0) \ \ge\ L_{\mathrm{VLB}}
= \mathbb{E}_q\left[\log\frac{p_\theta(x_{0:T})}{q(x_{1:T} \mid x_0)}\right]
= \mathbb{E}_q\left[\log p(x_T) + \sum_{t=1}^T \log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\right].$$

对 $t \ge 2$ 的每个因子使用贝叶斯定理，得到

$$L_{\mathrm{VLB}} = \mathbb{E}_q\big[\log p_\theta(x_0 \mid x_1)\big]
{} - D_{\mathrm{KL}}\big(q(x_T \mid x_0) \,\|\, p(x_T)\big)
{} - \sum_{t=2}^T \mathbb{E}_q\Big[
D_{\mathrm{KL}}\big(q(x_{t-1} \mid x_t, x_0) \,\|\, p_\theta(x_{t-1} \mid x_t)\big)\Big].$$

第一项是**重构项**，第二项不含参数，最后的求和才是训练的核心：在每个 $t$，网络退回的一步应当与“已知 $x_0$ 时”应走的一步
一致。

> **问：为什么等号成立？** 第一种形式是定义。联合概率密度是各步转移概率的连乘积，所以商的对数等于对数之和，即第二种形
> 式，它**对每一条路径**都相等。第三种形式**在平均意义下**相等：它用期望代替了一次抽样。而下界低于 $\log p_\theta(x_0)$
> 的那部分，正是真实路径与模型路径之间的 KL 散度。下面的代码单元用一个像素、三个时间步来验证这一切；逆向过程取线性的
> $p_\theta(x_{t-1} \mid x_t) = \mathcal{N}(0.9\,x_t,\ 0.3^2)$，这样 $\log p_\theta(x_0)$ 可以直接算出。
"""

# %%
toy, x_0 = schedules.NoiseSchedule(np.array([0.1, 0.2, 0.3])), 0.5
path, first, second = np.full(2_000_000, x_0), 0.0, 0.0
joint_p, joint_q = 1.0, 1.0
for t in range(3):
    before, path = path, rng.normal(np.sqrt(toy.alphas[t]) * path, np.sqrt(toy.betas[t]))
    p_step = norm.pdf(before, 0.9 * path, 0.3)  # p_theta(x_{t-1} | x_t)
    q_step = norm.pdf(path, np.sqrt(toy.alphas[t]) * before, np.sqrt(toy.betas[t]))  # q(x_t | x_{t-1})
    joint_p, joint_q = joint_p * p_step, joint_q * q_step
    second = second + np.log(p_step) - np.log(q_step)
    if t > 0:  # the divergence at this x_t
        mean = toy.posterior_mean_coef1[t] * x_0 + toy.posterior_mean_coef2[t] * path
        first = first - kl(mean, np.sqrt(toy.posterior_variance[t]), 0.9 * path, 0.3)
    else:  # the reconstruction term
        first = first + norm.logpdf(x_0, 0.9 * path, 0.3)
by_definition = np.log(joint_p * norm.pdf(path) / joint_q)
by_steps = second + norm.logpdf(path)
by_divergences = first - kl(np.sqrt(toy.alphas_cumprod[2]) * x_0, np.sqrt(1 - toy.alphas_cumprod[2]), 0, 1)
std = np.sqrt(0.9**6 + 0.3**2 * (1 + 0.9**2 + 0.9**4))  # of x_0 when x_3 is standard normal
print(f"largest difference of the first two forms on a path: {np.abs(by_definition - by_steps).max():.1e}")
for name, values in (("first, second form", by_steps), ("third form", by_divergences)):
    print(f"{name:18s} {values.mean():.4f} (standard error {values.std() / np.sqrt(len(values)):.4f})")
print(f"log p_theta(x_0)   {norm.logpdf(x_0, 0, std):.4f}, which is above them")

# %% [markdown] lang="en"
r"""
> **Question. What is the reconstruction term?** $\log p_\theta(x_0 \mid x_1)$: how well the last step, from an image
> with hardly any noise, meets the clean one. In a wider sense every divergence of the sum is one, at its own noise
> level. Section 7 shows their sizes for the trained network.

> **Question. How does one minimise the divergence, and why is it called a squared error of means?** By gradient
> descent: compute the loss, its gradient with respect to $\theta$, and take a small step against it. Both Gaussians
> have a fixed variance, so in the formula above only $(\mu_1 - \mu_2)^2 / 2\sigma_2^2$ depends on $\theta$: to minimise
> the divergence **is** to minimise the squared distance of the means. The next cell does it for one number: but for a
> rest that no mean can change, the divergence is just $(\tilde\mu - \mu_\theta)^2 / 2\sigma^2$.
"""
# %% [markdown] lang="zh"
r"""
> **问：什么叫重构项？** 就是 $\log p_\theta(x_0 \mid x_1)$：最后一步从几乎没有噪声的图片出发，能多好地还原清晰的图片。
> 广义地说，求和里的每个 KL 散度也都是各自噪声水平上的“重构损失”。第 7 节会给出训练好的网络各项的大小。

> **问：怎样最小化 KL 散度？为什么说它等于均值的平方误差？** 用梯度下降：计算损失，求它对 $\theta$ 的梯度，再沿梯度的反
> 方向走一小步。两个高斯分布的方差都是固定的，上面的公式中只有 $(\mu_1 - \mu_2)^2 / 2\sigma_2^2$ 与 $\theta$ 有关，所以
> 最小化 KL 散度**就是**最小化均值之差的平方。下面对一个数来做：KL 散度减去一个任何均值都改变不了的常数之后，恰好等于
> $(\tilde\mu - \mu_\theta)^2 / 2\sigma^2$。
"""

# %%
t, target, mu, rate = 100, 0.3, 1.0, 0.004
posterior_std, model_std = np.sqrt(schedule.posterior_variance[t]), np.sqrt(schedule.betas[t])
rest = kl(0, posterior_std, 0, model_std)
print("step     mu    divergence - rest    squared error / (2 sigma^2)")
for step in range(6):
    divergence = kl(target, posterior_std, mu, model_std)
    print(f"{step:4d} {mu:7.4f} {divergence - rest:15.6f} {(target - mu) ** 2 / (2 * model_std**2):22.6f}")
    mu -= rate * (mu - target) / model_std**2  # the gradient of the divergence

# %% [markdown] lang="en"
r"""
The mean of the step back can be written with the noise. Solving
$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$ for $x_0$ and putting it into $\tilde\mu_t$ gives

$$\mu_\theta(x_t, t) = \frac{1}{\sqrt{\alpha_t}}
\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon_\theta(x_t, t)\right),
\qquad \|\tilde\mu_t - \mu_\theta\|^2 = \frac{\beta_t^2}{\alpha_t (1-\bar\alpha_t)}\,\|\epsilon - \epsilon_\theta\|^2.$$

So the network may as well predict the noise. Ho et al. found that leaving the factor away trains better; that is
$L_{\mathrm{simple}}$, the loss of this notebook:

$$L_{\mathrm{simple}}(\theta) = \mathbb{E}_{t, x_0, \epsilon}\Big[\big\|\epsilon -
\epsilon_\theta\big(\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,\ t\big)\big\|^2\Big].$$

**Algorithm 1**, the training: draw an image $x_0$; draw $t$ evenly from $1 \dots T$; draw
$\epsilon \sim \mathcal{N}(0, I)$; take a step against the gradient of $\|\epsilon - \epsilon_\theta(x_t, t)\|^2$;
repeat.

The next cell holds the library's `q_posterior` against the second formula, with a wrong guess of the noise.
"""
# %% [markdown] lang="zh"
r"""
退回一步的均值可以用噪声来表示。由 $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$ 解出 $x_0$，代入
$\tilde\mu_t$，得

$$\mu_\theta(x_t, t) = \frac{1}{\sqrt{\alpha_t}}
\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon_\theta(x_t, t)\right),
\qquad \|\tilde\mu_t - \mu_\theta\|^2 = \frac{\beta_t^2}{\alpha_t (1-\bar\alpha_t)}\,\|\epsilon - \epsilon_\theta\|^2.$$

所以让网络预测噪声也是一样的。Ho 等人发现，去掉前面的系数训练效果更好，这就是本 notebook 使用的损失
$L_{\mathrm{simple}}$：

$$L_{\mathrm{simple}}(\theta) = \mathbb{E}_{t, x_0, \epsilon}\Big[\big\|\epsilon -
\epsilon_\theta\big(\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,\ t\big)\big\|^2\Big].$$

**算法 1**（训练）：抽取一张图片 $x_0$；从 $1 \dots T$ 中均匀抽取 $t$；抽取 $\epsilon \sim \mathcal{N}(0, I)$；沿
$\|\epsilon - \epsilon_\theta(x_t, t)\|^2$ 的梯度的反方向更新参数；重复以上步骤。

下面的代码单元给出一个有误差的噪声猜测，用库里的 `q_posterior` 验证第二个公式。
"""

# %%
diffusion = GaussianDiffusion(timesteps=200, scale_betas=False)
t = 100
steps = Tensor(np.full(64, t, np.int32))
x_0 = Tensor(digits[:64])
eps, error = (Tensor(rng.standard_normal(x_0.shape, np.float32)) for _ in range(2))
guess = eps + 0.1 * error
x_t = diffusion.q_sample(x_0, steps, eps)
right, _ = diffusion.q_posterior(x_0, x_t, steps)
wrong, _ = diffusion.q_posterior(diffusion.predict_x_start(x_t, steps, guess), x_t, steps)
factor = schedule.betas[t] ** 2 / (schedule.alphas[t] * (1 - schedule.alphas_cumprod[t]))
print(f"squared error of the means:           {float(ops.square(right - wrong).sum()):.6f}")
print(f"factor x squared error of the noise:  {factor * float(ops.square(eps - guess).sum()):.6f}")

# %% [markdown] lang="en"
r"""
### 2.4 A U-Net predicts the noise

The network takes a noisy image and its time step, and returns the noise, a tensor of the image's shape. DDPM's authors
chose a U-Net (Ronneberger et al., 2015). Like an autoencoder it has a narrow place in the middle, which lets only the
most important through: first it makes the image smaller (downsampling), then larger again (upsampling). Between the two
sides run skip connections, which bring the detail across and let gradients flow.

> **Question. What exactly is $\epsilon_\theta$? Is it the model's output?** $\epsilon_\theta$ is the network, a
> function; $\epsilon_\theta(x_t, t)$ is its output for one input: a guess at the noise, shaped like the image. It is no
> probability. Sections 3.6 and 7.3 print its numbers, before and after training.
"""
# %% [markdown] lang="zh"
r"""
### 2.4 U-Net 神经网络预测噪声

网络接收一张带噪声的图片和它所处的时间步，返回预测的噪声，即一个与图片形状相同的张量。DDPM 的作者选用了 U-Net
（Ronneberger 等，2015）。它与自动编码器一样，中间有一个“瓶颈”（bottleneck），只让最重要的信息通过：先把图片变小（下采
样），再把它变大（上采样）。两侧之间有跳跃连接，既把细节直接送过去，又有利于梯度流动。

> **问：$\epsilon_\theta$ 具体是什么？是模型输出的结果吗？** $\epsilon_\theta$ 是神经网络本身，即一个函数；
> $\epsilon_\theta(x_t, t)$ 是它对某个输入的输出：对噪声的猜测，形状与图片相同。它不是概率。3.6 节和 7.3 节会打印出它在
> 训练前后的数值。
"""

# %% [markdown] lang="en"
r"""
## 3. Building the network

### 3.1 Helpers

A residual connection, and the two ways to change the size: a convolution of stride 2 halves height and width, a
transposed one doubles them.

> **Mended 3.** The tutorial renames all parameters by their position, because its `CellList`s are made empty and filled
> later, so that names clash; one frozen parameter would shift every name. Here Python lists are filled first and
> wrapped once: names are unique by construction.

> **Mended 6, 7.** `randint` by `ops.uniform`, which is not documented on Ascend: here $t$ is drawn on the host.
> `ops.inv(ops.sqrt(x))`: here `ops.rsqrt`.
"""
# %% [markdown] lang="zh"
r"""
## 3. 构建网络

### 3.1 辅助模块

残差连接，以及改变尺寸的两种操作：步长为 2 的卷积使高和宽减半，转置卷积使其加倍。

> **修正 3** 原教程按位置给所有参数重新命名，因为它先建空的 `CellList` 再往里填，名字会冲突；只要冻结一个参数，后面所有
> 的名字都会错位。本库先填好 Python 列表，再一次性包装，名字天然唯一。

> **修正 6、7** 原教程用 `ops.uniform` 实现 `randint`，而 Ascend 的文档中没有这个用法：本库在主机端抽取 $t$。原教程的
> `ops.inv(ops.sqrt(x))`：本库用 `ops.rsqrt`。
"""

# %%
show(layers.Residual, layers.Downsample, layers.Upsample)

# %% [markdown] lang="en"
r"""
### 3.2 Position embeddings

The same weights serve every noise level, so the network must be told $t$. It gets sines and cosines of $t$ at many
frequencies, as in the Transformer (Vaswani et al., 2017): a tensor $(B,)$ of time steps becomes $(B, \mathrm{dim})$,

$$\mathrm{emb}(t) = \big[\sin(t\,\omega_0), \dots, \sin(t\,\omega_{d-1}),
\ \cos(t\,\omega_0), \dots, \cos(t\,\omega_{d-1})\big],
\qquad \omega_i = 10000^{-i/(d-1)},\quad d = \mathrm{dim}/2.$$

Neighbouring time steps get similar rows, distant ones do not.
"""
# %% [markdown] lang="zh"
r"""
### 3.2 位置向量

所有噪声水平共用同一组权重，因此必须把 $t$ 告诉网络。做法与 Transformer（Vaswani 等，2017）相同，用许多频率的正弦和余弦
来编码（练习 5 称之为“正弦编码”）：时间步张量 $(B,)$ 变成 $(B, \mathrm{dim})$，

$$\mathrm{emb}(t) = \big[\sin(t\,\omega_0), \dots, \sin(t\,\omega_{d-1}),
\ \cos(t\,\omega_0), \dots, \cos(t\,\omega_{d-1})\big],
\qquad \omega_i = 10000^{-i/(d-1)},\quad d = \mathrm{dim}/2.$$

相邻时间步的编码相近，相距较远的则不同。
"""

# %%
show(layers.SinusoidalPositionEmbeddings)
embedding = layers.SinusoidalPositionEmbeddings(32)(Tensor(np.arange(200, dtype=np.int32))).asnumpy()
print("shape:", embedding.shape)
for other in (101, 110, 150):
    lengths = np.linalg.norm(embedding[100]) * np.linalg.norm(embedding[other])
    print(f"cosine of the angle between t = 100 and t = {other}: {embedding[100] @ embedding[other] / lengths:.3f}")
figure, axis = plt.subplots(figsize=(7, 2.4))
axis.imshow(embedding.T, aspect="auto", cmap="RdBu")
axis.set(xlabel="t", ylabel="dimension")
axis.grid(False)
plt.show()

# %% [markdown] lang="en"
r"""
### 3.3 ResNet and ConvNeXt blocks

The building block of each stage. DDPM used a Wide ResNet's, Phil Wang's code a ConvNeXt's (Liu et al., 2022), and so
does the tutorial: a depthwise 7x7 convolution, the time embedding added to every pixel, a norm, a 3x3 convolution that
widens, GELU, a norm, a 3x3 convolution that narrows, and a residual connection.

> **Mended 1.** The tutorial's class `Block` calls `c(dim, ...)`, a name that does not exist: it would fail, had anyone
> used it. Here `Block` and `ResnetBlock` work (`ModelConfig(block="resnet")`) and are tested.

> **Mended 9.** MindSpore's defaults differ from PyTorch's: convolutions without a bias, GELU in its tanh form. So the
> tutorial's weights fit no PyTorch baseline. Here each of these is an option with a name; `Unet()` is the baseline's
> network, `Unet.tutorial()` the tutorial's.
"""
# %% [markdown] lang="zh"
r"""
### 3.3 ResNet/ConvNeXt 块

这是每个阶段的基本组成。DDPM 用的是 Wide ResNet 块，Phil Wang 的代码换成了 ConvNeXt 块（Liu 等，2022），原教程也是如此：
先做 7x7 深度卷积（逐通道卷积），把时间向量加到每个像素上，归一化，再用 3x3 卷积变宽，GELU，归一化，用 3x3
卷积变窄，最后加上残差连接。

> **修正 1** 原教程的 `Block` 类里写的是 `c(dim, ...)`，这个名字并不存在：只是因为从未被用到，才没有报错。本库的 `Block`
> 和 `ResnetBlock` 都可用（`ModelConfig(block="resnet")`），并有测试。

> **修正 9** MindSpore 的默认值与 PyTorch 不同：卷积没有偏置，GELU 用 tanh 近似。因此原教程的权重与任何 PyTorch 基线都对
> 不上。本库把每一处都做成有名字的选项：`Unet()` 是基线的网络，`Unet.tutorial()` 是原教程的网络。
"""

# %%
show(layers.ConvNextBlock)
block = layers.ConvNextBlock(28, 56, time_emb_dim=112)
out = block(ops.zeros((2, 28, 14, 14)), ops.zeros((2, 112)))
print("(2, 28, 14, 14) ->", out.shape, f"with {count_parameters(block):,d} parameters")

# %% [markdown] lang="en"
r"""
### 3.4 Attention

Convolutions look at their neighbourhood; attention lets every pixel ask every other. Queries, keys and values come from
a 1x1 convolution. In the middle of the U-Net, where the image is smallest, stands the usual form (Vaswani et al.,
2017):

$$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\big(Q K^{\top} / \sqrt{d}\big)\,V.$$

Its cost grows with the square of the number $N$ of pixels. Elsewhere stands **linear attention** (Shen et al., 2018): a
softmax over the features of $Q$, one over the pixels of $K$, and then $Q\,(K^{\top} V)$, in which $N$ appears only
once.

> **Mended 8.** The tutorial's LayerNorm mixes `x.var(1, keepdims=True)`, biased, with `x.mean(1, keep_dims=True)`;
> written `keepdim` the variance would be the unbiased one. Here it is spelled out and tested against the closed form.
"""
# %% [markdown] lang="zh"
r"""
### 3.4 Attention 模块

卷积只看邻域，注意力则让每个像素都能询问其他所有像素。查询、键、值由 1x1 卷积得到。在 U-Net 中间、图片最小的地方，使用常
规的注意力（Vaswani 等，2017）：

$$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\big(Q K^{\top} / \sqrt{d}\big)\,V.$$

它的计算量与像素数 $N$ 的平方成正比。其他地方使用**线性注意力**（Shen 等，2018）：对 $Q$ 的特征维做 softmax，对 $K$ 的像
素维做 softmax，然后计算 $Q\,(K^{\top} V)$，其中 $N$ 只出现一次。

> **修正 8** 原教程的 LayerNorm 混用了 `x.var(1, keepdims=True)`（有偏）和 `x.mean(1, keep_dims=True)`；如果写成
> `keepdim`，方差就会变成无偏的。本库把公式明确写出，并用闭式解测试。
"""

# %%
show(layers.Attention, layers.LinearAttention, layers.LayerNorm)
print("multiplications for one head of 32 features:")
for size in (7, 14, 28, 64):
    pixels = size * size
    print(f"{size:2d}x{size:2d} pixels: attention {2 * 32 * pixels**2:13,d}, linear {2 * 32**2 * pixels:11,d}")

# %% [markdown] lang="en"
r"""
### 3.5 Group normalisation

DDPM's authors put a group normalisation (Wu and He, 2018) between their convolutions and attention layers. It divides
the channels of an image into groups, and shifts and scales each group to mean 0 and variance 1; then each channel has a
gain and a bias of its own:

$$y = \gamma\,\frac{x - \mathbb{E}[x]}{\sqrt{\mathrm{Var}[x] + \varepsilon}} + \beta.$$

Here all channels are one group. `PreNorm` normalises the input of the attention.
"""
# %% [markdown] lang="zh"
r"""
### 3.5 组归一化

DDPM 的作者在 U-Net 的卷积层和注意力层之间使用组归一化（Wu 与 He，2018）。它把一张图片的通道分成若干组，把每组的均值和方
差变为 0 和 1，然后每个通道再有各自的增益和偏置：

$$y = \gamma\,\frac{x - \mathbb{E}[x]}{\sqrt{\mathrm{Var}[x] + \varepsilon}} + \beta.$$

这里所有通道合为一组。`PreNorm` 在注意力之前对输入做归一化。
"""

# %%
show(layers.PreNorm, layers.GroupNorm)
x = layers.GroupNorm(1, 6)(Tensor(5 + 3 * rng.standard_normal((4, 6, 8, 8), np.float32))).asnumpy()
print("means of four images, before 5:    ", *(f"{abs(value):.4f}" for value in x.mean(axis=(1, 2, 3))))
print("their variances, before 9:         ", *(f"{value:.4f}" for value in x.var(axis=(1, 2, 3))))

# %% [markdown] lang="en"
r"""
### 3.6 The conditional U-Net

Now the whole network $\epsilon_\theta(x_t, t)$: a batch of noisy images `(B, C, H, W)` and of time steps `(B,)` in, the
noise `(B, C, H, W)` out.

1. A 7x7 convolution of the images; the position embedding of the time steps, through a small MLP.
2. The way down: each stage has two ConvNeXt blocks, norm, attention with a residual connection, and a downsampling.
3. In the middle two blocks, with attention between them.
4. The way up: each stage takes the matching skip, two blocks, norm, attention, and an upsampling.
5. A last block and a 1x1 convolution.

> **Mended 10.** On the way up the tutorial's `is_last` is never true, and the first of the skips is stored and never
> read. Both are kept here, since weight files must fit, and said in the source.

> **Mended 11.** The tutorial uses the size of the image as the width of the network (`dim=image_size`), and says
> nothing when height and width cannot be halved. Here they are two options, and a size that cannot be is refused with
> its name.
"""
# %% [markdown] lang="zh"
r"""
### 3.6 条件 U-Net

现在来看整个网络 $\epsilon_\theta(x_t, t)$：输入一批带噪声的图片 `(B, C, H, W)` 和一批时间步 `(B,)`，输出噪声
`(B, C, H, W)`。

1. 对图片做 7x7 卷积；时间步的位置向量经过一个小的 MLP。
2. 下采样：每个阶段有两个 ConvNeXt 块、归一化、带残差连接的注意力，以及一次下采样。
3. 中间：两个块，其间是注意力。
4. 上采样：每个阶段先拼接对应的跳跃连接，再经过两个块、归一化、注意力，以及一次上采样。
5. 最后一个块，以及一个 1x1 卷积。

> **修正 10** 原教程的上采样部分里，`is_last` 永远不为真，而且第一个跳跃连接存下来之后从未被读取。为了让权重文件能够对
> 上，本库保留了这两点，并在源码中注明。

> **修正 11** 原教程把图片尺寸当作网络宽度（`dim=image_size`），高和宽不能被 4 整除时也没有任何提示。本库把它们分成两个
> 选项，尺寸不合适时会明确报错。
"""

# %%
show(Unet)

# %% [markdown] lang="en"
r"""
The same, step by step, with the shapes: the tutorial's network on two images of 28x28. Put together by hand in this
cell, the result is the network's own. At the end the numbers of $\epsilon_\theta(x_t, t)$: of an untrained network they
mean nothing yet.
"""
# %% [markdown] lang="zh"
r"""
下面逐步走一遍，并打印形状：原教程的网络，输入两张 28x28 的图片。这个单元手动算出的结果与网络自己的结果一致。最后是
$\epsilon_\theta(x_t, t)$ 的数值：网络还没有训练，这些数还没有意义。
"""

# %%
unet = Unet.tutorial(dim=28, channels=1, dim_mults=(1, 2, 4))
init_weights(unet, randomness.weights_generator(0))
x_t, t = Tensor(rng.standard_normal((2, 1, 28, 28), np.float32)), Tensor(np.array([0, 150], np.int32))
x, time_embedding, skips = unet.init_conv(x_t), unet.time_mlp(t), []
print(f"{'first convolution':18s} {x.shape}, time embedding {time_embedding.shape}")
for block1, block2, attention, downsample in unet.downs:
    x = attention(block2(block1(x, time_embedding), time_embedding))
    skips.append(x)
    x = downsample(x)
    print(f"{'down':18s} {x.shape}, skip {skips[-1].shape}")
x = unet.mid_block2(unet.mid_attn(unet.mid_block1(x, time_embedding)), time_embedding)
print(f"{'middle':18s} {x.shape}")
for block1, block2, attention, upsample in unet.ups:
    x = ops.concat((x, skips.pop()), axis=1)
    joined = x.shape
    x = upsample(attention(block2(block1(x, time_embedding), time_embedding)))
    print(f"{'up':18s} {x.shape}, from {joined}")
x, whole = unet.final_conv(x), unet(x_t, t)
print(f"{'last':18s} {x.shape}")
difference = float(ops.abs(x - whole).max())
print(f"{count_parameters(unet):,d} parameters; largest difference from unet(x_t, t): {difference:.1e}")
print(f"eps_theta: mean {float(whole.mean()):.3f}, least {float(whole.min()):.3f}, largest {float(whole.max()):.3f}")

# %% [markdown] lang="en"
r"""
## 4. The forward process in code

### 4.1 Schedules

How $\beta_t$ grows with $t$ is the schedule. DDPM takes a straight line from $10^{-4}$ to $0.02$ over $T = 1000$;
Nichol and Dhariwal (2021) found a cosine better. The tables are computed once, in float64.
"""
# %% [markdown] lang="zh"
r"""
## 4. 正向扩散的代码

### 4.1 方差计划

$\beta_t$ 随 $t$ 增长的方式叫作方差计划（schedule，练习里称为“噪声调度”）。DDPM 在 $T = 1000$ 步内从
$10^{-4}$ 线性增加到 $0.02$；Nichol 与 Dhariwal（2021）发现余弦计划效果更好。所有的表只用 float64 计算一次。
"""

# %%
show(schedules.linear_beta_schedule, schedules.cosine_beta_schedule, schedules.NoiseSchedule.__init__, extract)
makers = {
    "linear, as in the tutorial": GaussianDiffusion(timesteps=200, scale_betas=False),
    "linear, scaled by 1000 / T": GaussianDiffusion(timesteps=200),
    "cosine": GaussianDiffusion(timesteps=200, schedule="cosine"),
    "quadratic, scaled": GaussianDiffusion(timesteps=200, schedule="quadratic"),
    "sigmoid, scaled": GaussianDiffusion(timesteps=200, schedule="sigmoid"),
}
figure, axis = plt.subplots(figsize=(7, 3))
for name, made in makers.items():
    axis.plot(made.schedule.alphas_cumprod, label=name)
axis.set(xlabel="t", ylabel=r"$\bar\alpha_t$")
axis.legend(fontsize="small")
plt.show()

# %% [markdown] lang="en"
r"""
> **Question. Is $x_T$ really noise, and how large is $\bar\alpha_T$?** Only if the schedule sees to it.
> $\sqrt{\bar\alpha_T}$ is the share of the image that is left at the end. The divergence of $\mathcal{N}(0, I)$ from
> $q(x_T \mid x_0)$, the term without parameters of section 2.3, says how far the sampler's first draw is from what the
> network was trained on.

> **Mended 13.** The tutorial takes DDPM's betas, made for $T = 1000$, with $T = 200$. Then $\bar\alpha_T = 0.132$: 36 %
> of the image is still there, yet sampling begins with pure noise. Here the betas are scaled by $1000/T$
> (`scale_betas`). Section 6 shows what the mistake costs even a perfect network.

> **Mended 12.** The tutorial's `extract` makes a new Tensor of its table in every call. Here the tables are Tensors
> made once.
"""
# %% [markdown] lang="zh"
r"""
> **问：$x_T$ 真的是纯噪声吗？$\bar\alpha_T$ 有多大？** 这要看方差计划是否合适。$\sqrt{\bar\alpha_T}$ 是最后还剩下的图像
> 成分。2.3 节里不含参数的那一项，即 $q(x_T \mid x_0)$ 与 $\mathcal{N}(0, I)$ 之间的 KL 散度，说明采样的起点与网络训练时
> 见过的 $x_T$ 相差多远。

> **修正 13** 原教程把 DDPM 为 $T = 1000$ 设计的 $\beta$ 直接用于 $T = 200$，于是 $\bar\alpha_T = 0.132$：图像还剩 36%，
> 采样却从纯噪声开始。本库把 $\beta$ 乘以 $1000/T$（`scale_betas`）。第 6 节会看到，即使网络是完美的，这个错误也会带来偏
> 差。

> **修正 12** 原教程的 `extract` 每次调用都把表重新做成一个 Tensor。本库的表只做一次。
"""

# %%
print(f"{'schedule, T = 200':28s} {'alpha-bar_T':>12s} {'its root':>9s} {'KL to N(0, I), nats a pixel':>28s}")
for name, made in makers.items():
    last = made.schedule.alphas_cumprod[-1]
    distance = likelihood.prior_term(made.schedule, digits).mean()
    print(f"{name:28s} {last:12.6f} {math.sqrt(last):9.4f} {distance:28.6f}")

# %% [markdown] lang="en"
r"""
### 4.2 Images and back, and `q_sample`

Noise is added to Tensors in $[-1, 1]$, not to pictures in $\{0, \dots, 255\}$. The photograph comes with matplotlib, so
nothing has to be fetched.

> **Mended 16.** The tutorial goes back to pictures by `astype(np.uint8)` without clipping: 300 becomes 44, a bright
> pixel black. Here the values are clipped and rounded.
"""
# %% [markdown] lang="zh"
r"""
### 4.2 图片与张量互转，以及 `q_sample`

噪声加在取值为 $[-1, 1]$ 的张量上，而不是取值为 $\{0, \dots, 255\}$ 的图片上。示例照片是 matplotlib 自带的，无需下载。

> **修正 16** 原教程转回图片时直接用 `astype(np.uint8)`，没有截断：300 会变成 44，很亮的像素变成了黑的。本库先截断再四舍
> 五入。
"""

# %%
show(data.to_float, data.to_uint8, GaussianDiffusion.q_sample)
print("300 as uint8 without clipping:", np.array([300]).astype(np.uint8)[0])
print("and here:", data.to_uint8(np.array([300 / 127.5 - 1]))[0])

# %%
photograph = data.read_picture(visualize.photograph(), channels=3, size=128)
times = [0, 50, 100, 150, 199]
noise = rng.standard_normal((5, 3, 128, 128), np.float32)
figure, axes = plt.subplots(2, 6, figsize=(10, 3.9))
for row, name in zip(axes, ("linear, as in the tutorial", "cosine")):
    x_start = Tensor(data.to_float(np.repeat(photograph[None], 5, axis=0)))
    x_t = makers[name].q_sample(x_start, Tensor(np.array(times, np.int32)), Tensor(noise)).asnumpy()
    pictures = [photograph, *data.to_uint8(x_t)]
    for axis, picture, title in zip(row, pictures, ["x_0", *(f"t = {t}" for t in times)]):
        axis.imshow(picture.transpose(1, 2, 0))
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
    row[0].set_ylabel(name, fontsize="small")
figure.tight_layout()
plt.close(figure)
show_picture(figure.savefig, "jpeg")

# %% [markdown] lang="en"
r"""
Look at the last column: above, with the tutorial's schedule, Grace Hopper can still be seen at $t = 199$; below,
nothing of her.

### 4.3 The loss

Algorithm 1 in one function. `model` is any callable `model(x_t, t)`; the distance is $|d|$ (`l1`), $d^2$ (`l2`, the
paper's) or Huber's (`huber`, the tutorial's).

> **Mended 5.** The tutorial uses `SmoothL1Loss` with a `# todo`. Here the three distances are written out by name.

> **Mended 4.** Its `p2_loss_weight` has the exponent `-0.` and is therefore always 1. Here gamma and k are options.

A network that predicts nothing has a loss that can be worked out: with $\epsilon \sim \mathcal{N}(0, 1)$,
$\mathbb{E}|\epsilon| = \sqrt{2/\pi}$, $\mathbb{E}\,\epsilon^2 = 1$, and for Huber's distance the value below. The
tutorial's log begins with 0.434: its network, too, knew nothing yet.
"""
# %% [markdown] lang="zh"
r"""
看最后一列：上排用原教程的方差计划，$t = 199$ 时仍能看出人像；下排则看不出来了。

### 4.3 损失函数

算法 1 就是一个函数。`model` 可以是任何形如 `model(x_t, t)` 的可调用对象；距离可以是 $|d|$（`l1`）、$d^2$（`l2`，论文的
选择）或 Huber 距离（`huber`，原教程的选择）。

> **修正 5** 原教程使用带有 `# todo` 的 `SmoothL1Loss`。本库按名字写出三种距离的公式。

> **修正 4** 原教程的 `p2_loss_weight` 指数是 `-0.`，因此恒等于 1。本库把 gamma 和 k 做成选项。

永远输出 0、什么都不预测的网络，其损失可以直接算出：
$\epsilon \sim \mathcal{N}(0, 1)$ 时，$\mathbb{E}|\epsilon| = \sqrt{2/\pi}$，
$\mathbb{E}\,\epsilon^2 = 1$，Huber 距离的值见下。原教程的训练日志从 0.434 开始：那时它的网络也还什么都不知道。
"""


# %%
def predicts_nothing(x_t, t):
    """A network whose guess at the noise is always zero."""
    return ops.zeros_like(x_t)


show(GaussianDiffusion.p_losses)
inside = norm.cdf(1) - norm.cdf(-1) - 2 * norm.pdf(1)  # E[eps^2] where |eps| < 1
expected = {
    "l1": math.sqrt(2 / math.pi), "l2": 1.0, "huber": 0.5 * inside + 2 * norm.pdf(1) - 0.5 * 2 * norm.cdf(-1),
}
t = Tensor(rng.integers(0, 200, len(digits)).astype(np.int32))
noise = Tensor(rng.standard_normal(digits.shape, np.float32))
for name, value in expected.items():
    loss = GaussianDiffusion(loss=name).p_losses(predicts_nothing, Tensor(digits), t, noise)
    print(f"{name:5s} measured {float(loss):.4f}, expected {value:.4f}")

# %% [markdown] lang="en"
r"""
## 5. The data

Images are kept as bytes and become float32 in $[-1, 1]$ when a batch is drawn. The network also gets each image's
label, 0 to 9; for one in five images the label is withheld (`label_drop`), so that the same network learns to do
without. Section 8 needs both.

> **Mended 17.** The tutorial asks for as many loader threads as there are cores, and puts Python lambdas into the
> pipeline; more workers than cores raise an error. Here two cores suffice.

> **Mended 18.** It downloads 29 MB again at every run, unchecked. Here files are cached and checked by SHA-256, and may
> lie in a folder of yours: `DataConfig(folder=...)`.
"""
# %% [markdown] lang="zh"
r"""
## 5. 数据准备与处理

图片以字节保存，取批次时才转换成 $[-1, 1]$ 的 float32。网络还会得到每张图片的标签（0 到 9）；其中五分之一的标签会被隐去
（`label_drop`），使同一个网络也学会在没有标签时工作。第 8 节两者都要用到。

> **修正 17** 原教程让数据加载线程数等于核数，并在流水线里使用 Python lambda；线程数超过核数就会报错。本库两个核就够用。

> **修正 18** 原教程每次运行都重新下载 29 MB，而且不做校验。本库会缓存文件，并用 SHA-256 校验，也可以放在你自己的文件夹
> 里：`DataConfig(folder=...)`。
"""

# %%
RECIPES = {
    "digits": (
        ModelConfig(dim=32, dim_mults=(1, 2), num_classes=10),
        DataConfig(name="digits", image_size=8),
        {"batch_size": 64, "lr": 2e-3},
    ),
    "fashion_mnist": (
        ModelConfig(dim=28, dim_mults=(1, 2, 4), num_classes=10),
        DataConfig(name="fashion_mnist", image_size=28, horizontal_flip=True),
        {"batch_size": 16, "lr": 1e-3},
    ),
}
network, images_from, options = RECIPES[DATA]
config = Config(
    model=network, data=images_from, diffusion=DiffusionConfig(timesteps=200, schedule="cosine"),
    train=TrainConfig(
        steps=STEPS, lr_warmup_steps=50, label_drop=0.2, sample_every=0, tensorboard=False, **options
    ),
)
dataset = data.make_dataset(config.data, config.model.channels, config.model.num_classes)
print(f"{len(dataset)} images of {dataset.images.shape[1:]}, {dataset.images.dtype}")
first = np.concatenate([np.flatnonzero(dataset.labels == label)[:2] for label in range(10)]).reshape(10, 2).T.ravel()
images = dataset.batch(first)
print(f"as a batch: {images.dtype}, {images.shape}, from {images.min():.2f} to {images.max():.2f}")
show_images(images, columns=10)

# %% [markdown] lang="en"
r"""
## 6. Sampling

**Algorithm 2** runs the reverse process: draw $x_T \sim \mathcal{N}(0, I)$; for $t = T, \dots, 1$ let the network guess
the noise, compute the mean of the step back, and add noise of standard deviation $\sigma_t$, except in the last step
($z = 0$ for $t = 1$):

$$x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z,\qquad z \sim \mathcal{N}(0, I).$$

The library goes by way of $x_0$: from the predicted noise follows the predicted image, which can be clipped to
$[-1, 1]$, and from it $\tilde\mu_t$. Without clipping this is $\mu_\theta$ of section 2.3.

> **Mended 14.** The tutorial does not clip, and its `if t_index == 0` on a Python number makes one compiled graph for
> each step under `jit`. Here clipping is an option, and the last step is a mask: one graph for all.

> **Mended 15.** It keeps all 200 steps of all images in memory, and sampling has no seed. Here the loop yields one step
> after the other, and image $i$ of a seed is always the same image.
"""
# %% [markdown] lang="zh"
r"""
## 6. 采样

**算法 2** 运行逆向过程：采样 $x_T \sim \mathcal{N}(0, I)$；对 $t = T, \dots, 1$，让网络预测噪声，计算退回一步的均值，再
加上标准差为 $\sigma_t$ 的噪声（最后一步除外，即 $t = 1$ 时 $z = 0$）：

$$x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z,\qquad z \sim \mathcal{N}(0, I).$$

本库先求 $x_0$：由预测的噪声得到预测的图片，可以把它截断到 $[-1, 1]$，再由它求 $\tilde\mu_t$。如果不截断，结果就是 2.3
节的 $\mu_\theta$。

> **修正 14** 原教程不做截断；它的 `if t_index == 0` 判断的是 Python 整数，在 `jit` 下每一步都会编译一个图。本库把截断
> 做成选项，最后一步用掩码处理：所有步共用一个图。

> **修正 15** 原教程把所有图片的 200 个步骤全部存在内存里，而且采样没有随机种子。本库的循环逐步产出结果，同一个种子的第
> $i$ 张图片永远是同一张。
"""

# %%
show(GaussianDiffusion.p_mean_variance, GaussianDiffusion.p_sample, GaussianDiffusion.p_sample_loop)

# %% [markdown] lang="en"
r"""
> **Question. Why add noise again in every step back, and why not in the last?** Because $p_\theta(x_{t-1} \mid x_t)$ is
> a distribution, and we want a draw from it, not its mean: means alone collapse to the average. The last step adds
> none, since nobody will take that noise away again. The next cell needs no training: if the data are Gaussian, each
> pixel $\mathcal{N}(0.3, 0.5^2)$, then the best possible network is known,
> $\epsilon^\star = \sqrt{1-\bar\alpha_t}\,(x_t - 0.3\sqrt{\bar\alpha_t}) / (0.25\,\bar\alpha_t + 1 - \bar\alpha_t)$.
> With it Algorithm 2 gives back the mean 0.3, and the deviation 0.5 but for the error of 200 steps: $\tilde\beta_t$ is
> a little too small, $\beta_t$ a little too large, as section 2.2 said. Without noise the deviation collapses. With the
> tutorial's schedule the mean is wrong, whatever the network (mended 13).
"""
# %% [markdown] lang="zh"
r"""
> **问：为什么每退回一步都要再加噪声，而最后一步不加？** 因为 $p_\theta(x_{t-1} \mid x_t)$ 是一个分布，我们要的是从中抽
> 样，而不是它的均值：只取均值，结果会坍缩到平均图像。最后一步不加，是因为之后再没有人把这份噪声去掉。下面的单元不需要训
> 练：如果数据是高斯分布，每个像素服从 $\mathcal{N}(0.3, 0.5^2)$，那么最优的网络是已知的，
> $\epsilon^\star = \sqrt{1-\bar\alpha_t}\,(x_t - 0.3\sqrt{\bar\alpha_t}) / (0.25\,\bar\alpha_t + 1 - \bar\alpha_t)$。用
> 它运行算法 2，可以得回均值 0.3，以及标准差 0.5（只差 200 步离散化的误差：正如 2.2 节所说，$\tilde\beta_t$ 略小，
> $\beta_t$ 略大）。不加噪声时标准差会坍缩。而用原教程的方差计划，无论网络多好，均值都是错的（修正 13）。
"""


# %%
def perfect_network(process):
    """The best eps_theta for images whose pixels are N(0.3, 0.5^2)."""

    def model(x_t, t):
        signal, sigma = process.signal_and_sigma(t, x_t.shape)
        return sigma * (x_t - 0.3 * signal) / (0.25 * signal**2 + sigma**2)

    return model


def no_noise_between(noise):
    """The stream of noise for Algorithm 2, x_T as it is and zeros after it."""
    yield next(noise)
    while True:
        yield np.zeros_like(next(noise))


for name, variance, scale, change in (
    ("sigma^2 = beta-tilde", "fixed_small", True, iter),
    ("sigma^2 = beta", "fixed_large", True, iter),
    ("without noise in the steps", "fixed_small", True, no_noise_between),
    ("the tutorial's betas", "fixed_small", False, iter),
):
    process = GaussianDiffusion(timesteps=200, scale_betas=scale, variance=variance, clip_x_start=False)
    noise = change(randomness.image_noise(0, range(256), (1, 16, 16)))
    x = process.sample(perfect_network(process), noise, jit=False).asnumpy()
    print(f"{name:28s} mean {x.mean():.3f}, standard deviation {x.std():.3f}")

# %% [markdown] lang="en"
r"""
## 7. Training

### 7.1 One step

Algorithm 1 with everything that a real training needs: gradients of the scaled loss, their norm, Adam, a moving average
of the weights.

> **Mended 2.** The tutorial makes a `DynamicLossScaler` and never uses it. In half precision small gradients vanish and
> large ones overflow; so the loss is multiplied by a scale before the gradient and the gradient divided by it
> afterwards. Here it is used: a step that overflows changes nothing but the scale, which is halved. The cell below
> provokes it.
"""
# %% [markdown] lang="zh"
r"""
## 7. 训练过程

### 7.1 一步训练

算法 1，再加上真实训练所需的一切：对缩放后的损失求梯度、梯度的范数、Adam、权重的滑动平均。

> **修正 2** 原教程创建了 `DynamicLossScaler`，却从未使用。半精度下，小的梯度会消失，大的梯度会溢出；所以求梯度之前先把
> 损失乘以一个缩放系数，求完再把梯度除回来。本库真正用到了它：发生溢出的那一步除了把缩放系数减半之外，什么都不改变。下面
> 的单元故意制造一次溢出。
"""

# %%
show(make_train_step)
free = dataclasses.replace(config.train, loss_scale_max=2.0**119)  # let the scale grow as far as it likes
state, diffusion = build(dataclasses.replace(config, train=free))
step = make_train_step(state, diffusion, jit=False)
print(f"{count_parameters(state.model):,d} parameters")


def train_once(number):
    """Step `number` of Algorithm 1, and what came of it."""
    scale, before = float(state.loss_scaler.scale_value), state.model.init_conv.weight.asnumpy().copy()
    loss, gradient_norm, finite = step(*map(Tensor, batches.draw_batch(dataset, config, number)))
    change = np.abs(state.model.init_conv.weight.asnumpy() - before).max()
    print(
        f"step {number}: loss {float(loss):.4f}, norm of the gradients {float(gradient_norm):.3g}, "
        f"finite {bool(finite)}, scale {scale:.3g} -> {float(state.loss_scaler.scale_value):.3g}, "
        f"largest change of a weight {change:.1e}"
    )


train_once(0)
train_once(1)
state.loss_scaler.scale_value.set_data(Tensor(2.0**110, state.loss_scaler.scale_value.dtype))
train_once(2)

# %% [markdown] lang="en"
r"""
### 7.2 The whole run

`train` repeats that step, compiled, and writes a run folder: configuration, figures, checkpoints. `scripts/train.py`
does the same from the command line, and `--resume` goes on with such a folder.

> **Mended 19.** The tutorial's cosine for the learning rate is wired to 10 epochs of 3750 steps, and changes once an
> epoch. Here it follows the real length, step by step, after a short warm-up.

> **Mended 20.** It has no checkpoint, no moving average, no evaluation, no graph mode. All are here.
"""
# %% [markdown] lang="zh"
r"""
### 7.2 完整的训练

`train` 把上面的一步编译成图，反复执行，并写出一个运行文件夹：配置、指标、检查点。`scripts/train.py` 在命令行里做同样的
事，用 `--resume` 可以从这样的文件夹继续训练。

> **修正 19** 原教程的余弦学习率写死为 10 个 epoch、每个 3750 步，而且每个 epoch 才变一次。本库按实际长度逐步变化，并有
> 一小段预热。

> **修正 20** 原教程没有检查点，没有滑动平均，没有评估，也没有图模式。这些本库都有。
"""

# %%
show(learning_rates)
began = time.perf_counter()
with checkpoint.new_run(RUN, config, runtime.versions(), overwrite=True) as folder:
    train(config, dataset, folder)
print(f"{STEPS} steps in {time.perf_counter() - began:.0f} s")

# %%
lines = [json.loads(line) for line in (Path(RUN) / "metrics.jsonl").read_text().splitlines()]
steps, losses = ([line[key] for line in lines] for key in ("step", "loss"))
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(steps, losses)
axis.set(xlabel="step", ylabel="loss (mean of ten steps)", yscale="log")
axis.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
plt.show()
print(f"loss: first {losses[0]:.3f}, mean of the last ten lines {np.mean(losses[-10:]):.4f}")

# %% [markdown] lang="en"
r"""
### 7.3 What the network has learned

Its guess of $x_0$ at one look, without a label: above, noisy images; below, the predicted clean ones. At small $t$ it
repairs, at large $t$ it can only say what images look like on average. That is why sampling takes many small steps. The
guess of the noise, $\epsilon_\theta(x_t, t)$, is the other way round: the more noise there is, the better it is known.
"""
# %% [markdown] lang="zh"
r"""
### 7.3 网络学到了什么

不给标签，让网络只看一眼就猜 $x_0$：上排是带噪声的图片，下排是预测的清晰图片。$t$ 小时它能修复图片，$t$ 大时只能说出图片
平均是什么样子。这就是采样要分许多小步的原因。对噪声的猜测 $\epsilon_\theta(x_t, t)$ 则相反：噪声越多，猜得越准。
"""

# %%
run = checkpoint.load_run(RUN)
diffusion, schedule = run.diffusion, run.diffusion.schedule
times = np.array([5, 20, 40, 60, 80, 100, 120, 140, 160, 180], np.int32)
x_start, noise = images[:10], rng.standard_normal((10, *config.image_shape), np.float32)
x_t = diffusion.q_sample(Tensor(x_start), Tensor(times), Tensor(noise))
_, _, predicted = diffusion.p_mean_variance(run.model, x_t, Tensor(times))
guess = run.model(x_t, Tensor(times)).asnumpy()
print("t                              " + "".join(f"{value:6d}" for value in times))
print("correlation with the real noise" + "".join(
    f"{np.corrcoef(mine.ravel(), real.ravel())[0, 1]:6.2f}" for mine, real in zip(guess, noise)
))
show_images(np.concatenate([x_t.asnumpy(), predicted.asnumpy()]), columns=10)

# %% [markdown] lang="en"
r"""
The bound of section 2.3, in bits per pixel channel, as the number of bits that the model needs to store an image: for
real images, for the same images with their pixels in disorder, and for noise. $p_\theta$ prefers the real ones. The
curve shows the terms: the reconstruction term at $t = 0$, then the divergences.
"""
# %% [markdown] lang="zh"
r"""
2.3 节的下界可以换算成每个像素的比特数，即模型存储一张图片所需的比特数。下面比较真实图片、像素打乱后的同样图片，以及噪
声：$p_\theta$ 更偏爱真实图片。曲线是各项的大小：$t = 0$ 处是重构项，其后是各个 KL 散度。
"""

# %%
bound_step = likelihood.bound_step(diffusion, run.model)
real = dataset.batch(np.arange(20))
disorder = rng.permutation(real.reshape(20, -1), axis=1).reshape(real.shape)
kinds = {
    "real images": real,
    "their pixels in disorder": disorder,
    "noise": rng.uniform(-1, 1, real.shape).astype(np.float32),
}
bounds = {
    name: likelihood.bound_of_images(bound_step, schedule, x, seed=0, batch_size=20) for name, x in kinds.items()
}
for name, bound in bounds.items():
    totals = likelihood.bits(bound.total)
    print(f"{name:26s} {totals.mean():8.2f} bits per pixel (of single images {totals.min():.2f} to {totals.max():.2f})")
terms = likelihood.bits(bounds["real images"].terms.mean(axis=0))
print(f"of the real images' {terms.sum():.2f} bits the reconstruction term takes {terms[0]:.2f}")
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(np.arange(1, 200), terms[1:], label="divergences")
axis.scatter([0], terms[:1], color="tab:red", label="reconstruction term")
axis.set(xlabel="t", ylabel="bits per pixel", yscale="log")
axis.legend()
plt.show()

# %% [markdown] lang="en"
r"""
### 7.4 New images

Algorithm 2 with the trained network's moving average: 200 steps for 40 images, four of each label. They were never
drawn by anyone.
"""
# %% [markdown] lang="zh"
r"""
### 7.4 推理过程：从模型中采样

用训练好的网络（权重的滑动平均）运行算法 2：40 张图片，每个标签四张，共 200 步。这些图片从来没有人画过。
"""

# %%
labels = np.arange(40, dtype=np.int32) % 10
told = Guided(run.model, labels, 1.0, null=10)
loop = partial(diffusion.p_sample_loop, diffusion.reverse_step(told))
samples, frames = sample(loop, 200, config.image_shape, 40, seed=0, frame_steps=visualize.frame_steps(200, 32))
show_images(samples, columns=10)

# %% [markdown] lang="en"
r"""
And the way from noise to the first ten of them:
"""
# %% [markdown] lang="zh"
r"""
以及前十张从噪声逐渐变成图片的过程：
"""

# %%
pictures = [visualize.make_grid(data.to_uint8(frame[:10]), columns=5, cell=24) for frame in frames]
visualize.save_gif(pictures, Path(RUN) / "denoise.gif")
display(Image(filename=Path(RUN) / "denoise.gif", width=520))

# %% [markdown] lang="en"
r"""
## 8. Guidance, and fewer steps

### 8.1 Guidance

The network has learned to predict with the label, $\epsilon_\theta(x_t, t, y)$, and without it,
$\epsilon_\theta(x_t, t)$. **Classifier-free guidance** (Ho and Salimans, 2022) goes further in the direction in which
the label moves the prediction:

$$\hat\epsilon = \epsilon_\theta(x_t, t) + w\,\big(\epsilon_\theta(x_t, t, y) - \epsilon_\theta(x_t, t)\big).$$

$w = 0$ is no label, $w = 1$ the label as it is, $w > 1$ more typical images, and less variety, which the standard
deviation of a pixel within a column measures. The seed is the same in all three pictures; each column asks for its own
label. For the digits, a classifier trained on the real ones says how many of the 40 it takes for the digit that was
asked for, and how sure it is.
"""
# %% [markdown] lang="zh"
r"""
## 8. 引导，以及更少的步数

### 8.1 无分类器引导

网络既学会了在有标签时预测 $\epsilon_\theta(x_t, t, y)$，也学会了在没有标签时预测 $\epsilon_\theta(x_t, t)$。**无分类器
引导**（Ho 与 Salimans，2022）沿着标签改变预测的方向走得更远：

$$\hat\epsilon = \epsilon_\theta(x_t, t) + w\,\big(\epsilon_\theta(x_t, t, y) - \epsilon_\theta(x_t, t)\big).$$

$w = 0$ 相当于没有标签，$w = 1$ 是标签本来的作用，$w > 1$ 得到更典型的图片，但多样性减少（用同一列内像素的标准差来衡
量）。三幅图用同一个随机种子，每一列要求一个标签。对于数字，还用一个在真实数字上训练的分类器来评判：40 张里有多少张被认
作所要求的数字，以及它有多大把握。
"""

# %%
show(Guided.construct)


def draw(name, steps, denoise):
    """The 40 images of seed 0, and the seconds they took, compiling aside."""
    sampler = partial(samplers.find(name), denoise, schedule)
    sample(partial(sampler, steps=1), 1, config.image_shape, 40, seed=0)  # compiles
    began = time.perf_counter()
    x, _ = sample(partial(sampler, steps=steps), steps, config.image_shape, 40, seed=0)
    return x, time.perf_counter() - began


def verdict(x):
    """What the judge of the digits says of images whose column asks for their label."""
    if DATA != "digits":
        return ""
    found, probabilities = judge_digits(data.to_uint8(x))
    return f"{(found == labels).sum():2d} of 40 as asked, mean probability {probabilities.mean():.2f}"


denoisers = {
    0: diffusion.denoiser(run.model), 1: diffusion.denoiser(told),
    3: diffusion.denoiser(Guided(run.model, labels, 3.0, null=10)),
}
for weight, denoise in denoisers.items():
    x, seconds = draw("dpmpp_2m", 15, denoise)
    variety = x.reshape(4, 10, -1).std(axis=0).mean()
    print(f"w = {weight}: {seconds:.2f} s, deviation within a column {variety:.2f}, {verdict(x)}")
    show_images(x, columns=10)

# %% [markdown] lang="en"
r"""
### 8.2 Fewer steps

Algorithm 2 asks the network 200 times. It can leave steps out, too, and better solvers of the same reverse process go
further with few. **DDIM** (Song et al., 2020) adds no noise on the way: it takes the predicted image and the predicted
noise, and mixes them anew for an earlier time $s < t$,

$$x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s}\,\hat\epsilon.$$

So its images depend on $x_T$ alone, and settle as the steps become more. **DPM-Solver++** (Lu et al., 2022) also uses
the prediction before, to come nearer to them in as many steps. All rows are told the same labels ($w = 1$) and begin
with the same noise; the distance is the root of the mean squared difference from the images of 200 DDIM steps. The
ancestral rows (Algorithm 2) draw noise on the way and end at other images. Digits of 8x8 pixels are an easy case: the
judge sees little between 200 steps and 5. The picture is that of `dpmpp_2m` with 5; with 15 it is the second one above.
"""
# %% [markdown] lang="zh"
r"""
### 8.2 更少的步数

算法 2 要调用网络 200 次。它也可以跳步，而同一个逆向过程若用更好的求解方法，很少的步数就能走得更远。**DDIM**（Song 等，
2020）途中不再加入噪声：它取预测的图片和预测的噪声，按更早的时刻 $s < t$ 重新混合，

$$x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s}\,\hat\epsilon.$$

因此它的图片只取决于 $x_T$，步数越多越趋于稳定。**DPM-Solver++**（Lu 等，2022）还利用上一步的预测，用同样的步数更接近这
个极限。各行用同样的标签（$w = 1$），从同样的噪声出发；distance 是与 200 步 DDIM 的图片之差的均方根。ancestral 各行（算
法 2）途中会抽取噪声，因此得到的是另外的图片。8x8 的数字是容易的情形：在评判者看来，200 步与 5 步相差无几。图中是
`dpmpp_2m` 只走 5 步的结果；走 15 步的结果就是上面的第二幅图。
"""

# %%
show(samplers.dpmpp_2m)
limit, _ = draw("ddim", 200, denoisers[1])
for name, count in (
    ("ancestral", 200), ("ancestral", 15), ("ddim", 15), ("dpmpp_2m", 15), ("ddim", 5), ("dpmpp_2m", 5)
):
    x, seconds = draw(name, count, denoisers[1])
    distance = np.sqrt(np.square(x - limit).mean())
    print(f"{name:9s} {count:3d} steps: {seconds:5.2f} s, distance {distance:.3f}, {verdict(x)}")
show_images(x, columns=10)

# %% [markdown] lang="en"
r"""
## 9. On Ascend

With CANN installed and its `set_env.sh` sourced, the notebook should run on Ascend by itself: `RuntimeConfig()` of the
first cell means `RuntimeConfig(device="auto")`, which takes Ascend before GPU before CPU. From the command line:

```
python scripts/train.py --config configs/fashion_mnist_ascend.yaml --out runs/fashion_mnist_ascend
python scripts/check_operators.py --target Ascend
```

The first command trains; the second lists, on any machine, every operator of the compiled steps with what MindSpore
documents of it for Ascend. In float32 the library switches HF32 off, which Ascend would otherwise use in convolutions;
`--runtime.hf32 true` allows it, and `--train.precision bf16` computes in half precision. The first step compiles for a
while; shapes are static, so only the first. **None of this was run on Ascend here**: the outputs in this notebook are a
CPU's.
"""
# %% [markdown] lang="zh"
r"""
## 9. 在昇腾（Ascend）上运行

安装好 CANN 并 source 其 `set_env.sh` 之后，本 notebook 应当会自动使用 Ascend：第一个单元里的 `RuntimeConfig()` 就是
`RuntimeConfig(device="auto")`，依次选择 Ascend、GPU、CPU。命令行的用法：

```
python scripts/train.py --config configs/fashion_mnist_ascend.yaml --out runs/fashion_mnist_ascend
python scripts/check_operators.py --target Ascend
```

第一条命令用于训练；第二条可以在任何机器上运行，列出编译后各步用到的每个算子，以及 MindSpore 文档对它在 Ascend 上的说
明。使用 float32 时，本库关闭了 Ascend 卷积默认使用的 HF32；`--runtime.hf32 true` 可以打开它，`--train.precision bf16`
则用半精度计算。第一步要编译一段时间；由于形状都是静态的，只有第一步如此。**以上内容没有在 Ascend 上运行过**：本
notebook 里的输出都来自 CPU。
"""

# %% [markdown] lang="en"
r"""
## 10. What came after, and what to do next

- *Improved DDPM* (Nichol and Dhariwal, 2021) learns the variance too: `DiffusionConfig(variance="learned")`.
- *Cascaded diffusion* (Ho et al., 2021) chains models of growing resolution.
- *Diffusion models beat GANs* (Dhariwal and Nichol, 2021): better networks, and guidance by a classifier:
  `ClassifierGuided`.
- *Classifier-free guidance* (Ho and Salimans, 2022): section 8.
- *DALL-E 2* (Ramesh et al., 2022) and *Imagen* (Saharia et al., 2022) make images from text.
- The many network calls were the weakness of diffusion models; the solvers of section 8 were one answer to it.

Now do it yourself: the folder [`course/exercises`](exercises/README.md) asks for each piece of this notebook (the
schedule, `q_sample`, the posterior, the embedding, the blocks, the loss, the training step, the samplers, guidance,
the bound), and `scripts/grade.py` says what is right, and why not.
"""
# %% [markdown] lang="zh"
r"""
## 10. 总结，以及下一步

- *Improved DDPM*（Nichol 与 Dhariwal，2021）：方差也由网络学习，`DiffusionConfig(variance="learned")`。
- *Cascaded diffusion*（Ho 等，2021）：把分辨率递增的多个模型级联起来。
- *Diffusion models beat GANs*（Dhariwal 与 Nichol，2021）：更好的网络，以及分类器引导，`ClassifierGuided`。
- *Classifier-free guidance*（Ho 与 Salimans，2022）：见第 8 节。
- *DALL-E 2*（Ramesh 等，2022）与 *Imagen*（Saharia 等，2022）：由文本生成图片。
- 扩散模型的弱点曾是要多次调用网络；第 8 节的求解方法就是一种对策。

现在轮到你动手了：[`course/exercises`](exercises/README.md) 文件夹里的练习涵盖本 notebook 的每一部分（方差计划、
`q_sample`、后验、位置向量、各个模块、损失、训练步、采样器、引导、变分下界），
`scripts/grade.py` 会告诉你哪些做对了，哪些没有做对以及原因。
"""

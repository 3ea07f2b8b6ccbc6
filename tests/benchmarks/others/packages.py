"""Packages that are judged in an environment of their own, and the files of their calls.

python3.12 -m venv others && . others/bin/activate
pip install -e . jax==0.10.2 mpmath diffrax optimistix lineax jaxopt distrax numpyro
pip install tensorflow-probability ott-jax tinygp s2fft e3nn-jax kfac-jax quadax flowjax
pip install softjax tokamax jax-md mujoco-mjx
python -m tests.benchmarks.rules_of_others --times --files diffrax_solves
"""

FILES = [
    "diffrax_solves",
    "distrax_distributions",
    "gaussian_and_sphere",
    "jaxopt_solvers",
    "kidger_solvers",
    "numpyro_distributions",
    "ott_transport",
    "pallas_kernels",
    "particles_and_bodies",
    "quadrature_and_flows",
    "tfp_math",
]
DISTRIBUTIONS = {
    "diffrax": "diffrax",
    "optimistix": "optimistix",
    "lineax": "lineax",
    "jaxopt": "jaxopt",
    "distrax": "distrax",
    "numpyro": "numpyro",
    "tensorflow_probability": "tensorflow-probability",
    "ott": "ott-jax",
    "tinygp": "tinygp",
    "s2fft": "s2fft",
    "e3nn_jax": "e3nn-jax",
    "kfac_jax": "kfac-jax",
    "quadax": "quadax",
    "flowjax": "flowjax",
    "softjax": "softjax",
    "tokamax": "tokamax",
    "jax_md": "jax-md",
}

"""What is known of JAX's primitives: in which of them a derivative of somebody's own may be hidden.

The truth is taken of the forward pass alone, so that no rule under test may take part in it. What
stands in no class here, a primitive of another library or of a newer JAX, may hold one: then
nothing is differentiated, and differences of values decide. A test holds that every primitive of
the installed JAX stands in a class.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Holds a jaxpr, and calls it.
CALLS = frozenset({
    "jit", "pjit", "call", "closed_call", "core_call", "eval_jaxpr", "stage", "remat", "remat2",
    "checkpoint", "composite", "compute_on", "custom_partitioning", "xla_metadata_call",
    "scheduling_group", "fused_call", "custom_vmap_call",
})  # fmt: skip

# Holds a function, and a derivative of its own: `internals.is_rule`.
RULES = frozenset({
    "custom_vjp_call", "custom_jvp_call", "custom_jvp_call_jaxpr", "linear_call",
    "call_hi_primitive",
})  # fmt: skip

# Holds jaxprs that are run by turns or by choice; and the solution of a linear system, whose
# derivative JAX takes of the system, as told by the one who called it.
CONTROL_FLOW = frozenset({"scan", "while", "cond", "shard_map", "run_state"})
SOLVES = frozenset({"custom_linear_solve"})

# Code of another language, or a kernel: what runs in it is not in the jaxpr, or not to be widened;
# and ours, within the derivative of `as_function`.
OPAQUE = frozenset({
    "linear_map",
    "pure_callback", "io_callback", "debug_callback", "debug_print", "buffer_callback", "ffi_call",
    "custom_call", "call_exported", "pallas_call", "core_map", "mpmd_map", "tpu_custom_call",
    "mosaic_gpu_p", "cudnn_fusion", "custom_fusion", "fusible", "emit_pipeline", "pipeline_body",
    "dot_product_attention_fwd", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd",
    "dot_product_attention_bwd_wrapper", "dot_product_attention_fp8_fwd",
    "dot_product_attention_fp8_fwd_wrapper", "dot_product_attention_fp8_bwd",
    "dot_product_attention_fp8_bwd_wrapper", "scaled_matmul", "scaled_matmul_wrapper", "rnn_fwd",
    "rnn_bwd",
})  # fmt: skip

# JAX's own mathematics, the derivative JAX's own too, or none at all.
MATHEMATICS = _words("""
    abs acos acosh add add_any after_all and approx_top_k argmax argmin asin asinh atan atan2
    atanh bessel_i0e bessel_i1e bitcast_convert_type broadcast_in_dim cbrt ceil cholesky
    cholesky_update clamp clz complex concatenate conj conv_general_dilated convert_element_type
    copy copy_p cos cosh create_token cumlogsumexp cummax cummin cumprod cumsum dce_sink digamma
    div dot_general dynamic_slice dynamic_update_slice eig eigh empty empty2 eq eq_to erf
    erf_inv erfc exp exp2 expm1 fft floor from_edtype gather ge geqp3 geqrf gt hessenberg
    householder_product igamma igamma_grad_a igammac imag integer_pow iota is_finite le le_to
    lgamma log log1p log2 logistic lt lt_to lu lu_pivots_to_permutation max min mul mulhi ne neg
    nextafter not one_minus_square optimization_barrier or ormqr pad polygamma polynomial
    population_count pow qr ragged_dot_general random_bits random_clone random_fold_in
    random_gamma random_seed random_split random_unwrap random_wrap philox2x32 philox4x32
    threefry2x32 threefry4x32 iota_2x32_shape real reduce reduce_and reduce_max reduce_min
    reduce_or reduce_precision reduce_prod reduce_sum reduce_window reduce_window_max
    reduce_window_min reduce_window_sum reduce_xor regularized_incomplete_beta rem reshape rev
    rng_bit_generator rng_uniform round rsqrt scaled_dot scatter scatter-add scatter-max
    scatter-min scatter-mul scatter-sub scatter_add scatter_max scatter_min scatter_mul
    scatter_sub schur select_and_gather_add select_and_scatter select_and_scatter_add select_n
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh slice sort split sqrt
    square squeeze stack stop_gradient sub svd symmetric_product tan tanh tie tile to_edtype
    top_k transpose triangular_solve tridiagonal tridiagonal_solve unstack xor zeros_like zeta
""")

# Values as they are, said to be somewhere or called something; and what moves between devices.
PLACES = _words("""
    name device_put layout_constraint relayout reshard sharding_constraint shard_alike
    inspect_sharding xla_metadata_value with_memory_space_constraint platform_index axis_index
    pvary reduced_vary_cast reduced_vary_cast_p vary_unreduced_cast vary_unreduced_cast_p
    all_gather all_gather_invariant all_gather_reduced all_to_all all_gather_start
    all_gather_done all_gather_reduced_start all_to_all_start all_to_all_done pbroadcast
    pbroadcast_dynamic pbroadcast_start pbroadcast_done pmax pmin ppermute ppermute_start
    ppermute_done precv preduced psend psum psum_start psum_done psum_invariant
    psum_invariant_start ragged_all_to_all reduce_scatter reduce_scatter_start
    reduce_scatter_done unreduced_pmax unreduced_pmin unreduced_psum unreduced_psum_start
    unreduced_reduce_scatter unreduced_reduce_scatter_start check dim_as_value dimension_size
    shape_assertion assert_consumed_value consume program_order global_array_to_host_local_array
    host_local_array_to_global_array
""")

# Arrays that are written to, and what differentiation itself leaves in a jaxpr.
STATE = _words("""
    new_ref free_ref freeze empty_ref accum_grad_in_ref get swap addupdate pin unpin
    broadcast_to create_linear box_get box_set new_box log_extend log_read new_log custom_lin
    remat_opt call_hi_primitive_linearized unreachable
""")

# Of sparse arrays, with rules of JAX's own.
SPARSE = _words("""
    bcoo_dot_general bcoo_dot_general_sampled bcoo_extract bcoo_fromdense bcoo_sort_indices
    bcoo_spdot_general bcoo_sum_duplicates bcoo_todense bcoo_transpose bcsr_dot_general
    bcsr_extract bcsr_fromdense bcsr_todense coo_fromdense coo_matmat coo_matvec coo_spmm
    coo_spmv coo_todense csr_fromdense csr_matmat csr_matvec csr_spmm csr_spmv csr_todense
    spsolve todense
""")

# Under `vmap` and `scan` by JAX alone: what holds these only is the same under both.
BATCHED_BY_JAX = MATHEMATICS | _words("""
    jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call
    scan while cond
""")

KNOWN = CALLS | RULES | CONTROL_FLOW | SOLVES | OPAQUE | MATHEMATICS | PLACES | STATE | SPARSE

# The dependency graph: which folder may see which. An edge that is not listed stops the
# configure step; tests/checks/layers_check.py reads the includes for the same edges.
#
# A target's layer is its folder, except that optim has two: optim_step (the arithmetic: core, quant)
# below optim (adaptors and the sharded engine: paging and comm too).
set(BITSHARD_LAYERS core quant paging comm optim_step optim trainer python tests bench examples)
set(BITSHARD_LAYER_core core)
set(BITSHARD_LAYER_quant quant core)
set(BITSHARD_LAYER_paging paging core)
set(BITSHARD_LAYER_comm comm core)
set(BITSHARD_LAYER_optim_step optim_step quant core)
set(BITSHARD_LAYER_optim optim optim_step quant paging comm core)
set(BITSHARD_LAYER_trainer trainer optim optim_step quant paging comm core)
set(BITSHARD_LAYER_python python optim_step quant core)
set(BITSHARD_LAYER_tests ${BITSHARD_LAYERS})
set(BITSHARD_LAYER_bench bench tests optim optim_step quant paging comm core trainer)
set(BITSHARD_LAYER_examples examples optim optim_step quant paging comm core)

# bitshard_check_layers(<target> <layer> <dep>...): every bitshard::x among the deps must be in a layer
# that <layer> may see.
function(bitshard_check_layers target layer)
  if(NOT layer IN_LIST BITSHARD_LAYERS)
    message(FATAL_ERROR "${target}: unknown layer '${layer}' (cmake/Layers.cmake)")
  endif()
  foreach(dep IN LISTS ARGN)
    if(dep MATCHES "^bitshard::(.+)$")
      set(dep_target bitshard_${CMAKE_MATCH_1})
      if(NOT TARGET ${dep_target})
        message(FATAL_ERROR "${target}: dependency ${dep} does not exist (or is declared later)")
      endif()
      get_target_property(dep_layer ${dep_target} BITSHARD_LAYER)
      if(NOT dep_layer IN_LIST BITSHARD_LAYER_${layer})
        message(FATAL_ERROR
                "${target} (layer ${layer}) may not depend on ${dep} (layer ${dep_layer}); "
                "allowed: ${BITSHARD_LAYER_${layer}} (cmake/Layers.cmake)")
      endif()
    endif()
  endforeach()
endfunction()

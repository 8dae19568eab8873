# GCC 13 takes inlined code of LibTorch's headers for an access out of bounds; it stays a warning there.
set(AFT_TORCH_OPTIONS "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  set(AFT_TORCH_OPTIONS -Wno-error=array-bounds)
endif()

# aft_use_torch(<target>): links <target> with libaft_torch.so and compiles it with the torch precompiled header.
# Link other libraries with target_link_libraries as usual; they must not add compile options of their own.
function(aft_use_torch target)
  target_link_libraries(${target} PRIVATE aft_torch aft_compile)
  target_compile_options(${target} PRIVATE ${AFT_TORCH_OPTIONS})
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE")
    # -fPIC instead of a program's -fPIE: the header was compiled with it. The linker still makes a PIE.
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
  target_precompile_headers(${target} REUSE_FROM aft_torch)
endfunction()

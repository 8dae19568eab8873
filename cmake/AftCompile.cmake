# How every target of the project is compiled and linked.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)

# Installed programs find the project's libraries beside them and LibTorch where it was at build time.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib;$ORIGIN")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# ccache takes a precompiled header only when told that its time stamp does not matter.
find_program(AFT_CCACHE ccache)
if(AFT_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${AFT_CCACHE})
endif()
find_program(AFT_MOLD mold)
if(AFT_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

if(AFT_SANITIZE)
  add_compile_options(-fsanitize=${AFT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${AFT_SANITIZE})
  # One SIMD target, AVX2, and lightly optimised: instrumented, three at full tilt would take most of an hour to build.
  add_compile_options(-march=haswell -maes -O1)
  add_compile_definitions(HWY_COMPILE_ONLY_STATIC)
endif()

# Warnings are errors only where CMAKE_COMPILE_WARNING_AS_ERROR is ON, as in .ci/run: what another compiler warns about
# stops nobody's build. -fno-math-errno lets sqrt and friends inline, and changes no value. All of it is for building
# only: an installed library asks nothing of its consumer's flags.
add_library(aft_compile INTERFACE)
target_compile_options(aft_compile INTERFACE
  $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-fno-math-errno>>)
target_include_directories(aft_compile INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                                 $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>)

# aft_compile_together(<target> [<files>]): compiles its sources, `files` at a time, as one unit, where the headers of
# each cost more than its own lines. -DCMAKE_UNITY_BUILD=OFF, which clang-tidy needs, compiles them one by one.
function(aft_compile_together target)
  if(NOT DEFINED CMAKE_UNITY_BUILD)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
    if(ARGC GREATER 1)
      set_target_properties(${target} PROPERTIES UNITY_BUILD_BATCH_SIZE ${ARGV1})
    endif()
  endif()
endfunction()

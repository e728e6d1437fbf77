# The libraries that GPU devices live in. Their host code is C, their kernels are CUDA C.
#
#   libluna_emulated.so       the kernels compiled by g++, run by kernels/emulation/; for tests
#   race/libluna_emulated.so  the same with every access of a kernel checked for races
#   libluna_cuda.so           the kernels compiled by nvcc, where it is installed

file(GLOB GPU_HOST_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.c)
list(FILTER GPU_HOST_SOURCES EXCLUDE REGEX "/driver_cuda[^/]*\\.c$")
list(APPEND GPU_HOST_SOURCES ${BASE_SOURCES} kernels/operation.c)
file(GLOB GPU_KERNEL_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)
file(GLOB EMULATION_SOURCES CONFIGURE_DEPENDS kernels/emulation/*.cpp)
list(FILTER EMULATION_SOURCES EXCLUDE REGEX "/race\\.cpp$")
list(APPEND EMULATION_SOURCES ${CMAKE_SOURCE_DIR}/kernels/cuda/driver_emulated.cpp)

# Fibers change stacks by hand, in assembly that is x86-64's; ThreadSanitizer cannot follow them.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT LUNA_SANITIZE STREQUAL "thread"
   AND NOT LUNA_FUZZ)
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g")
  set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g")
  enable_language(CXX)
  set(EMULATION_OPTIONS -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Werror)
  # Kernels run on the machine that compiles them, so they may use what it has.
  file(READ /proc/cpuinfo CPUINFO)
  if(CPUINFO MATCHES " fma .* avx2 ")
    list(APPEND EMULATION_OPTIONS -march=x86-64-v3)
  endif()

  function(luna_emulated name folder)
    add_library(${name} MODULE ${GPU_HOST_SOURCES} ${GPU_KERNEL_SOURCES} ${EMULATION_SOURCES} ${ARGN})
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:C>:${LUNA_WARNINGS}>
                           $<$<COMPILE_LANGUAGE:CXX>:${EMULATION_OPTIONS};-ftls-model=initial-exec>)
    target_link_libraries(${name} PRIVATE Threads::Threads m)
    target_link_options(${name} PRIVATE -Wl,--no-undefined)
    set_target_properties(${name} PROPERTIES OUTPUT_NAME luna_emulated CXX_STANDARD 17
                          CXX_EXTENSIONS OFF C_VISIBILITY_PRESET hidden
                          CXX_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${folder})
  endfunction()

  set_source_files_properties(${GPU_KERNEL_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  luna_emulated(luna_emulated ${CMAKE_BINARY_DIR})
  if(LUNA_SANITIZE STREQUAL "address")
    # A module leaves the sanitizers' functions to the program that opens it.
    set_target_properties(luna_emulated PROPERTIES LINK_OPTIONS "")
  endif()
  if(LUNA_SANITIZE STREQUAL "")
    # Instrumented kernels call our own checks: the library is linked without the sanitizer.
    luna_emulated(luna_emulated_race ${CMAKE_BINARY_DIR}/race kernels/emulation/race.cpp)
    foreach(source ${GPU_KERNEL_SOURCES})
      set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS
        "$<$<STREQUAL:$<TARGET_PROPERTY:NAME>,luna_emulated_race>:-O1;-fsanitize=thread;--param;tsan-instrument-func-entry-exit=0>")
    endforeach()
  endif()
endif()

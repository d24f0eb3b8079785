// In the place of CuPy's header of this name, which every kernel includes: nobody computes with complex numbers.
#pragma once
